"""One line for the same thing in many layers: module paths that differ in their numbers alone."""

from __future__ import annotations

from collections.abc import Iterable

from tintc.ir.columns import runs_of

Path = tuple[str, ...]
"""The names of a module path, from the outermost."""


def ranges(numbers: Iterable[int]) -> str:
    """Return ``0-3,5`` of 5, 0, 1, 2, 3."""
    texts: list[str] = []
    for start, stop in runs_of(sorted(set(numbers))):
        if stop - start == 1:
            texts.append(str(start))
        else:
            texts.append(f"{start}-{stop - 1}")
    return ",".join(texts)


def folded(paths: Iterable[str]) -> list[str]:
    """Return ``["layers.0.mlp", "layers.1.mlp", "norm"]`` as ``["layers.0-1.mlp", "norm"]``, in order of appearance.

    A path that is returned stands for every combination of its numbers, and all of them are among the paths given.
    """
    distinct = list(dict.fromkeys(tuple(path.split(".")) for path in paths))
    longest = max(map(len, distinct), default=0)
    for place in reversed(range(longest)):
        distinct = _folded_at(distinct, place)
    return [".".join(path) for path in distinct]


def _folded_at(paths: list[Path], place: int) -> list[Path]:
    """Return the paths with one for all that differ in the number at that place alone."""
    groups: dict[Path, list[Path]] = {}
    for path in paths:
        key = path
        if place < len(path) and path[place].isdecimal():
            key = (*path[:place], "", *path[place + 1 :])
        groups.setdefault(key, []).append(path)
    return [_as_one(group, place) for group in groups.values()]


def _as_one(group: list[Path], place: int) -> Path:
    path = group[0]
    if len(group) == 1:
        return path
    return (*path[:place], ranges(int(each[place]) for each in group), *path[place + 1 :])
