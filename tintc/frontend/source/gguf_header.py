"""`check_gguf`: a GGUF file's header, walked within the file's bounds before transformers believes it.

The header says how many entries, tensors and blocks (layers) follow, and readers allocate and loop by that. A file that
was cut short, or was made to mislead, so costs hours; here it costs a sentence.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from tintc.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING = 8
ARRAY = 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type number of a value -> its `struct` code."""
BLOCK = re.compile(r"blk\.(\d+)\.")
MOST_DIMENSIONS = 4


class _Broken(Exception):
    """What is wrong with a file, as the rest of a sentence, and what to do."""

    def __init__(self, why: str, advice: str = "get it again"):
        super().__init__(why)
        self.advice = advice


def check_gguf(file: Path) -> None:
    """Raise `ModelError` unless a file's header is whole, its tensors lie in the file, and its blocks are there."""
    try:
        size = file.stat().st_size
        if size == 0:
            raise _Broken("it is empty")
        with file.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as mapped:
            _check(_Reader(mapped), size)
    except OSError as error:
        raise ModelError(f"{file.name} cannot be read: {error.strerror or error}.") from error
    except _Broken as error:
        raise ModelError(f"{file.name} is no GGUF file that can be read: {error}; {error.advice}.") from error


@dataclass
class _Reader:
    """A position in a file's bytes, that no claim of the file can move past their end."""

    data: mmap
    at: int = 0

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        self.skip(size)
        return self.data[self.at - size : self.at]

    def skip(self, size: int) -> None:
        """Pass over the next bytes."""
        if size > len(self.data) - self.at:
            raise _Broken("its header claims more than the file holds")
        self.at += size

    def number(self, code: str) -> Any:
        """Return the next number, of that `struct` code."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        """Return the next string, which has its length before it."""
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        """Return the next value of that type; of an array, which is only passed over, None."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise _Broken(f"its header has a value of the unknown type {kind}")
        inner = self.number("I")
        count = self.number("Q")
        if inner in SCALARS:
            self.skip(count * struct.calcsize(SCALARS[inner]))
        elif inner == STRING:
            for _ in range(count):
                self.skip(self.number("Q"))
        else:
            raise _Broken(f"its header has an array of the unknown type {inner}")
        return None


def _check(reader: _Reader, size: int) -> None:
    """Raise `_Broken` if something is wrong with the header of a file of that size in bytes."""
    if reader.take(4) != MAGIC:
        raise _Broken("it does not begin with GGUF")
    version = reader.number("I")
    if version not in VERSIONS:
        raise _Broken(f"its version is {version}, and 2 and 3 are known")
    n_tensors = reader.number("Q")
    n_entries = reader.number("Q")
    entries: dict[str, Any] = {}
    for _ in range(n_entries):
        key = reader.text()
        entries[key] = reader.value(reader.number("I"))
    ends = []
    blocks: set[int] = set()
    for _ in range(n_tensors):
        name = reader.text()
        ends.append(_end_of_tensor(reader, name))
        if match := BLOCK.match(name):
            blocks.add(int(match[1]))
    _check_blocks(entries, len(blocks))
    alignment = entries.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Broken(f"its header aligns tensors by {alignment}")
    start = -(-reader.at // alignment) * alignment
    if start + max(ends, default=0) > size:
        raise _Broken(f"it is cut short: {size} bytes of {start + max(ends)} are there")


def _end_of_tensor(reader: _Reader, name: str) -> int:
    """Return where a tensor's numbers end, in bytes from the beginning of all tensors' numbers."""
    n_dimensions = reader.number("I")
    if n_dimensions > MOST_DIMENSIONS:
        raise _Broken(f"its tensor {name[:80]!r} has {n_dimensions} dimensions")
    elements = math.prod(reader.number("Q") for _ in range(n_dimensions))
    kind = reader.number("I")
    try:
        in_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (KeyError, ValueError):
        raise _Broken(f"its tensor {name[:80]!r} has the unknown type {kind}") from None
    return reader.number("Q") + elements // in_block * block_bytes


def _check_blocks(entries: dict[str, Any], n_blocks: int) -> None:
    """Raise `_Broken` unless the header claims a width, and as many blocks as have tensors, and one at least."""
    parts = entries.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise _Broken(f"it is one of {parts} parts", "join them with llama-gguf-split --merge")
    architecture = entries.get("general.architecture")
    claimed = entries.get(f"{architecture}.block_count")
    if not isinstance(claimed, int) or claimed < 1:
        raise _Broken("its header claims no blocks (layers)")
    if claimed != n_blocks:
        raise _Broken(f"its header claims {claimed} blocks (layers), and {n_blocks} are in it")
    width = entries.get(f"{architecture}.embedding_length")
    if not isinstance(width, int) or width < 1:  # transformers would build one of thousands
        raise _Broken("its header claims no width (embedding_length)")
