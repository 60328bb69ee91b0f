"""GGUF files as trees: a valid one taken apart, and any tree, lies and all, put together."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
from tiny_gguf import write_llama
from tiny_models import llama

CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


def write_tiny(path: Path) -> None:
    """Write a Llama of one layer, with an entry of every kind."""
    model = llama(n_layers=1, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=32, vocab=23, tie_word_embeddings=False)

    def entries(writer: gguf.GGUFWriter) -> None:
        writer.add_array("notes", ["a", "b"])
        writer.add_array("numbers", [1, 2, 3])
        writer.add_bool("flag", True)

    write_llama(path, model, more=entries)


class _Reading:
    def __init__(self, data: bytes):
        self.data = data
        self.at = 4

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def string(self) -> str:
        length = self.number("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner = self.number("I")
            count = self.number("Q")
            return {"kind": inner, "count": count, "values": [self.value(inner) for _ in range(count)]}
        return self.number(CODES[kind])


def described(data: bytes) -> dict[str, Any]:
    """Return a valid file as a tree of JSON values; the tensors' numbers are only counted."""
    read = _Reading(data)
    version, n_tensors, n_entries = read.number("I"), read.number("Q"), read.number("Q")
    entries = []
    for _ in range(n_entries):
        key, kind = read.string(), read.number("I")
        entries.append({"key": key, "kind": kind, "value": read.value(kind)})
    tensors = []
    for _ in range(n_tensors):
        name, count = read.string(), read.number("I")
        dims = [read.number("Q") for _ in range(count)]
        tensors.append(
            {"name": name, "count": count, "dims": dims, "kind": read.number("I"), "offset": read.number("Q")}
        )
    rest = len(data) - read.at
    return {
        "version": version,
        "n_tensors": n_tensors,
        "n_entries": n_entries,
        "entries": entries,
        "tensors": tensors,
        "bytes": rest,
    }


def packed(tree: Any) -> bytes:
    """Return the file that a tree describes; what is no number is written as one, what is no text as one."""
    if not isinstance(tree, dict):
        return b"GGUF" + _value(STRING, str(tree))
    parts = [b"GGUF", _number("I", tree.get("version")), _number("Q", tree.get("n_tensors"))]
    parts.append(_number("Q", tree.get("n_entries")))
    for entry in _objects(tree.get("entries")):
        kind = entry.get("kind")
        parts += [_value(STRING, entry.get("key")), _number("I", kind), _value(kind, entry.get("value"))]
    for tensor in _objects(tree.get("tensors")):
        parts += [_value(STRING, tensor.get("name")), _number("I", tensor.get("count"))]
        dims = tensor.get("dims")
        if isinstance(dims, list):
            parts += [_number("Q", one) for one in dims[:1000]]
        parts += [_number("I", tensor.get("kind")), _number("Q", tensor.get("offset"))]
    rest = tree.get("bytes")
    if isinstance(rest, int):
        parts.append(bytes(max(0, min(rest, 1 << 20))))
    return b"".join(parts)


def _objects(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        return []
    return [one for one in value[:20_000] if isinstance(one, dict)]


def _number(code: str, value: Any) -> bytes:
    if code in "fd":
        number = float(value) if isinstance(value, int | float) and abs(value) < 1e300 else 0.0
        return struct.pack(f"<{code}", number if abs(number) < 1e38 else 0.0)
    whole = int(value) if isinstance(value, int) or (isinstance(value, float) and abs(value) < 1e300) else 0
    if code == "?":
        return bytes([whole & 0xFF])
    size = struct.calcsize(f"<{code}")
    return (whole & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def _value(kind: Any, value: Any) -> bytes:
    """Return a value of a type, of an unknown one as a text."""
    if kind == ARRAY and isinstance(value, dict):
        values = value.get("values")
        inner = value.get("kind")
        own = [_value(inner, one) for one in values[:1000]] if isinstance(values, list) else []
        return b"".join([_number("I", inner), _number("Q", value.get("count")), *own])
    if isinstance(kind, int) and kind in CODES:
        return _number(CODES[kind], value)
    text = str(value).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text
