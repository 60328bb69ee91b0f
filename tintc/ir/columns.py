"""Runs of integers: `aux.select` and `sim.select` write columns as ``(start, stop)`` or ``(start, stop, times)``, and
rows of parameters are ``(start, stop, step)``.

Negative columns are zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from torch import Tensor

Pairs = tuple[tuple[int, int], ...]
"""Numbers ``start, start + 1, ...`` below ``stop``."""
Runs = tuple[tuple[int, ...], ...]
"""Such pairs, and ``(start, stop, times)`` for a pair that stands there at least twice in succession."""
StridedRuns = tuple[tuple[int, int, int], ...]
"""Numbers ``start, start + step, ...`` below ``stop``."""


def runs_of(columns: Iterable[int]) -> Runs:
    """Return ``[4, 5, 6, 0, 0]`` as ``((4, 7), (0, 1, 2))``."""
    runs: list[tuple[int, int]] = []
    for column in columns:
        if runs and runs[-1][1] == column:
            runs[-1] = (runs[-1][0], column + 1)
        else:
            runs.append((column, column + 1))
    return folded(runs)


def folded(pairs: Iterable[tuple[int, int]]) -> Runs:
    """Return equal neighbours among pairs as one run."""
    runs: list[tuple[int, ...]] = []
    for pair, copies in groupby(pairs):
        times = len(list(copies))
        if times > 1:
            runs.append((*pair, times))
        else:
            runs.append(pair)
    return tuple(runs)


def unfolded(runs: Runs) -> Pairs:
    """Return runs as pairs alone."""
    return tuple((start, stop) for start, stop, times in _counted(runs) for _ in range(times))


def _counted(runs: Runs) -> list[tuple[int, int, int]]:
    """Return ``(start, stop, times)`` of every run."""
    return [(*run, 1)[:3] for run in runs]  # pyright: ignore[reportReturnType]


def width_of(runs: Runs) -> int:
    """Return how many columns runs have."""
    return sum((stop - start) * times for start, stop, times in _counted(runs))


def strided_runs_of(numbers: Sequence[int]) -> StridedRuns:
    """Return sorted numbers as the fewest runs that a walk from the left finds; a run stops right after its last
    number."""
    runs: list[tuple[int, int, int]] = []
    first = 0
    while first < len(numbers):
        last = min(first + 1, len(numbers) - 1)
        step = max(numbers[last] - numbers[first], 1)
        while last + 1 < len(numbers) and numbers[last + 1] - numbers[last] == step:
            last += 1
        runs.append((numbers[first], numbers[last] + 1, step))
        first = last + 1
    return tuple(runs)


def unit_runs(runs: Iterable[Sequence[int]]) -> Pairs:
    """Return runs, with steps or without, as runs without."""
    plain: list[tuple[int, int]] = []
    for start, stop, *step in runs:
        if step in ([], [1]):
            plain.append((start, stop))
        else:
            plain += [(number, number + 1) for number in range(start, stop, *step)]
    return tuple(plain)


def take(x: Tensor, columns: Runs) -> Tensor:
    """Return the columns of ``x [..., W]`` side by side."""
    parts: list[Tensor] = []
    for start, stop, times in _counted(columns):
        part = x.new_zeros(1).expand(*x.shape[:-1], stop - start)
        if start >= 0:
            part = x[..., start:stop]
        parts.append(part[..., None, :].expand(*x.shape[:-1], times, -1).flatten(-2))
    return torch.cat(parts, -1)


def put_back(y: Tensor, columns: Runs, width: int) -> Tensor:
    """Return the transpose of `take`, ``[..., width]``: what was taken more than once is summed, what was not is
    zero."""
    x = y.new_zeros(*y.shape[:-1], width)
    counted = _counted(columns)
    sizes = [(stop - start) * times for start, stop, times in counted]
    for (start, stop, times), part in zip(counted, y.split(sizes, -1), strict=True):
        if start >= 0:
            x[..., start:stop] += part.unflatten(-1, (times, -1)).sum(-2)
    return x


def fits(columns: Runs, source: int, width: int) -> bool:
    """Return True if these are `width` columns of a value that is `source` wide."""
    if not all(len(run) == 2 or (len(run) == 3 and run[2] > 1) for run in columns):
        return False
    inside = all(start < stop <= (source if start >= 0 else 0) for start, stop, _ in _counted(columns))
    return inside and width == width_of(columns)


def compose(outer: Runs, inner: Runs) -> Runs:
    """Return runs of `inner`, which count within those of `outer`, as runs of what `outer` counts in; neighbours
    joined.

    Runs of negative numbers are zeros, whatever they are counted in.
    """
    places = unfolded(outer)
    known: dict[tuple[int, int], list[tuple[int, int]]] = {}
    runs: list[tuple[int, int]] = []
    for pair in unfolded(inner):
        if pair not in known:
            known[pair] = _within(places, *pair)
        for run in known[pair]:
            if runs and runs[-1][1] == run[0] and runs[-1][0] >= 0:
                runs[-1] = (runs[-1][0], run[1])
            else:
                runs.append(run)
    return folded(runs)


def _within(outer: Pairs, start: int, stop: int) -> list[tuple[int, int]]:
    """Return one pair, which counts within others, as pairs of what these count in."""
    if start < 0:
        return [(start - stop, 0)]
    runs: list[tuple[int, int]] = []
    base = 0
    for first, last in outer:
        a = max(start, base)
        b = min(stop, base + last - first)
        if a < b:
            runs.append((first + a - base, first + b - base))
        base += last - first
    return runs
