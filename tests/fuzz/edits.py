"""Edits of files by their structure: what stands at a place of a JSON text, of a program, of a header is changed for
something that could stand there, or could not.

An edit is four plain values, so that a case is a line of JSON that gives the same bytes for ever. `place` and `what`
are taken modulo the places and choices that there are.
"""

from __future__ import annotations

import copy
import json
import os
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pools import NAMES, RAW, TOKENS, VALUES


class Edit(NamedTuple):
    """A change of a file. kind: of those of its format."""

    file: str
    kind: str
    place: int
    what: int


def chosen(pool: Sequence[Any], what: int) -> Any:
    return pool[what % len(pool)]


MOST = 1 << 18
"""Characters that an edit may make of a text."""

# JSON: the nodes of a tree


def _nodes(tree: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of everything below a tree's root."""
    nodes: list[tuple[Any, Any]] = []
    level = [tree]
    while level:
        one = level.pop()
        keys: list[Any] = []
        if isinstance(one, dict):
            keys = list(one)
        elif isinstance(one, list):
            keys = list(range(len(one)))[:200]
        for key in keys:
            nodes.append((one, key))
            level.append(one[key])
    return nodes


def _value(what: int) -> Any:
    """Return a copy, which further edits may change."""
    return copy.deepcopy(chosen(VALUES, what))


def _set(inside: Any, key: Any, what: int, _: list[tuple[Any, Any]]) -> None:
    inside[key] = _value(what)


def _near(inside: Any, key: Any, what: int, nodes: list[tuple[Any, Any]]) -> None:
    """A number beside the one that is there, or a text beside it."""
    value = inside[key]
    if isinstance(value, bool):
        inside[key] = not value
    elif isinstance(value, int | float):
        inside[key] = chosen(
            (value + 1, value - 1, -value, value * 2, value * 1000, value / 2, str(value), [value]), what
        )
    elif isinstance(value, str):
        inside[key] = chosen(
            (value[:-1], value + "x", (value * 2)[:MOST], value.upper(), f"../{value}", f"/{value}", " "), what
        )
    else:
        _copy(inside, key, what, nodes)


def _drop(inside: Any, key: Any, what: int, _: list[tuple[Any, Any]]) -> None:
    del inside[key]


def _copy(inside: Any, key: Any, what: int, nodes: list[tuple[Any, Any]]) -> None:
    other, at = chosen(nodes, what)
    text = json.dumps(other[at])
    if len(text) < MOST // 16:
        inside[key] = json.loads(text)


def _rename(inside: Any, key: Any, what: int, _: list[tuple[Any, Any]]) -> None:
    if isinstance(inside, dict):
        inside[chosen((*NAMES, f"{key}x", str(key)[:-1]), what)] = inside.pop(key)


def _add(inside: Any, _: Any, what: int, __: list[tuple[Any, Any]]) -> None:
    if isinstance(inside, dict):
        inside[chosen(NAMES, what)] = _value(what // len(NAMES))
    else:
        inside.append(_value(what))


def _nest(inside: Any, key: Any, what: int, _: list[tuple[Any, Any]]) -> None:
    for _depth in range(chosen((1, 2, 10, 63, 66, 500), what)):
        inside[key] = [inside[key]]


def _repeat(inside: Any, key: Any, what: int, _: list[tuple[Any, Any]]) -> None:
    room = MOST // len(json.dumps(inside[key]))
    count = min(room, chosen((2, 5, 100, 10_000), what))
    inside[key] = [copy.deepcopy(inside[key]) for _ in range(count)]  # else a later edit of one would be of all


TREE: dict[str, Callable[[Any, Any, int, list[tuple[Any, Any]]], None]] = {
    "set": _set,
    "near": _near,
    "drop": _drop,
    "copy": _copy,
    "rename": _rename,
    "add": _add,
    "nest": _nest,
    "repeat": _repeat,
}


def edited_tree(tree: Any, edits: Sequence[Edit]) -> Any:
    root = [tree]
    for edit in edits:
        nodes = _nodes(root)
        if nodes:
            inside, key = chosen(nodes, edit.place)
            TREE[edit.kind](inside, key, edit.what, nodes)
    return root[0] if root else None


def dumped(tree: Any) -> bytes:
    """Return a tree as JSON, with what `json` does not write put in for the words that stand for it."""
    try:
        text = json.dumps(tree)
    except RecursionError:  # of several edits that nest
        text = '"@deep"'
    for word, raw in RAW.items():
        if word in text:
            text = text.replace(f'"{word}"', raw)
    return text.encode("utf-8", "surrogatepass")


# programs: the tokens of a text

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d[\d.]*(?:e-?\d+)?|[%@]?[A-Za-z_][\w.\-]*|\s+|.', re.DOTALL)


def _token(tokens: list[str], at: int, what: int) -> None:
    tokens[at] = chosen(TOKENS, what)


def _other_token(tokens: list[str], at: int, what: int) -> None:
    """The next token from there that begins alike: a name for a name, a number for a number."""
    like = [one for one in dict.fromkeys(tokens) if _class(one) == _class(tokens[at])]
    tokens[at] = chosen(like, what)


def _class(token: str) -> str:
    if token[0].isdigit() or (token[0] == "-" and token[1:]):
        return "0"
    if token[0] in '"%@':
        return token[0]
    return "a" if token[0].isalpha() else token[0]


def _near_token(tokens: list[str], at: int, what: int) -> None:
    numbers = [index for index, one in enumerate(tokens) if _class(one) == "0"]
    if numbers:
        at = numbers[at % len(numbers)]
        try:
            value = float(tokens[at]) if set(tokens[at]) & set(".e") else int(tokens[at])
        except ValueError:
            return
        tokens[at] = str(chosen((value + 1, value - 1, -value, value * 2, value * 1000, 0, 1), what))


def _drop_token(tokens: list[str], at: int, what: int) -> None:
    del tokens[at : at + chosen((1, 2, 3, 10), what)]


def _lines(change: Callable[[list[str], int, int], None]) -> Callable[[list[str], int, int], None]:
    def on_lines(tokens: list[str], at: int, what: int) -> None:
        lines = "".join(tokens).split("\n")
        change(lines, at % len(lines), what)
        tokens[:] = TOKEN.findall("\n".join(lines))

    return on_lines


def _drop_line(lines: list[str], at: int, what: int) -> None:
    del lines[at : at + chosen((1, 2, 10), what)]


def _copy_line(lines: list[str], at: int, what: int) -> None:
    lines.insert(what % len(lines), lines[at])


def _swap_lines(lines: list[str], at: int, what: int) -> None:
    other = what % len(lines)
    lines[at], lines[other] = lines[other], lines[at]


TEXT: dict[str, Callable[[list[str], int, int], None]] = {
    "token": _token,
    "other token": _other_token,
    "near token": _near_token,
    "drop token": _drop_token,
    "drop line": _lines(_drop_line),
    "copy line": _lines(_copy_line),
    "swap lines": _lines(_swap_lines),
}


def edited_text(text: str, edits: Sequence[Edit]) -> str:
    tokens = TOKEN.findall(text)
    for edit in edits:
        if tokens:
            TEXT[edit.kind](tokens, edit.place * 31 % len(tokens), edit.what)
    return "".join(tokens)


# bytes

SIZES = (0, 1, 7, 8, 100, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
NUMBERS = (float("nan"), float("inf"), -float("inf"), 1e38, -1e38, 1e-45, 0.0)


def _flip(data: bytearray, place: int, what: int) -> None:
    data[place * 97 % len(data)] ^= 1 << what % 8


def _byte(data: bytearray, place: int, what: int) -> None:
    data[place * 97 % len(data)] = what % 256


def _cut(data: bytearray, place: int, _: int) -> None:
    del data[place % len(data) :]


def _remove(data: bytearray, place: int, what: int) -> None:
    at = place * 97 % len(data)
    del data[at : at + what % 64 + 1]


def _insert(data: bytearray, place: int, what: int) -> None:
    at = place * 97 % len(data)
    data[at:at] = chosen((b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"{", b"[" * 5000, b"\n" * 3, b"\0" * 4096, b'"'), what)


def _number(data: bytearray, place: int, what: int) -> None:
    """A number of four bytes near the end, where tensors are."""
    at = len(data) - 4 * (place % max(1, len(data) // 4)) - 4
    data[at : at + 4] = struct.pack("<f", chosen(NUMBERS, what))


def _length(data: bytearray, _: int, what: int) -> None:
    """The first eight bytes, the length of a safetensors header."""
    data[:8] = struct.pack("<Q", chosen(SIZES, what))


BYTES: dict[str, Callable[[bytearray, int, int], None]] = {
    "flip": _flip,
    "byte": _byte,
    "cut": _cut,
    "remove": _remove,
    "insert": _insert,
}
TENSOR_BYTES = BYTES | {"number": _number, "length": _length}


def edited_bytes(data: bytes, edits: Sequence[Edit]) -> bytes:
    changed = bytearray(data)
    for edit in edits:
        if changed:
            TENSOR_BYTES[edit.kind](changed, edit.place, edit.what)
    return bytes(changed)


# what a file may be in place of one


def _link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


INSTEAD: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: None,
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link outside": lambda path: path.symlink_to(path.parent.parent / "outside" / path.name),
    "a link to a device": _link_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": _link_to("nothing"),
    "sparse": lambda path: (path.touch(), os.truncate(path, 3 << 30))[0],
}
