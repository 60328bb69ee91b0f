"""What is the same in many layers, said once: module paths that differ in their numbers alone."""

from __future__ import annotations

from collections.abc import Iterable

from tintc.ir.columns import runs_of


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
    """``["layers.0.mlp", "layers.1.mlp", "norm"]`` as ``["layers.0-1.mlp", "norm"]``, in order of first appearance.

    A path that is written stands for every combination of its numbers, and all of them are among the given ones.
    """
    found = list(dict.fromkeys(tuple(path.split(".")) for path in paths))
    for place in reversed(range(max(map(len, found), default=0))):
        groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for parts in found:
            numbered = place < len(parts) and parts[place].isdecimal()
            groups.setdefault((*parts[:place], "", *parts[place + 1 :]) if numbered else parts, []).append(parts)
        found = [
            group[0]
            if len(group) == 1
            else (*key[:place], ranges(int(parts[place]) for parts in group), *key[place + 1 :])
            for key, group in groups.items()
        ]
    return [".".join(parts) for parts in found]
