"""Runs of integers: `aux.select` and `sim.select` write columns as ``(start, stop)``, ``(start, stop, times)`` or
``(start, stop, times, each)``, and rows of parameters are ``(start, stop, step)``.

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
"""Such pairs, ``(start, stop, times)`` for a pair that stands there at least twice in succession, and ``(start, stop,
times, each)`` for one each of whose columns stands there that often in succession."""
StridedRuns = tuple[tuple[int, int, int], ...]
"""Numbers ``start, start + step, ...`` below ``stop``."""


def runs_of(columns: Iterable[int]) -> Runs:
    """Return ``[4, 5, 6, 0, 0]`` as ``((4, 7), (0, 1, 2))``, and ``[0, 0, 1, 1]`` as ``((0, 2, 1, 2),)``."""
    return folded(_pairs_of(columns))


def _pairs_of(columns: Iterable[int]) -> list[tuple[int, int]]:
    """Return columns as pairs; one that is repeated stands alone."""
    pairs: list[tuple[int, int]] = []
    single = False
    for column, copies in groupby(columns):
        count = len(list(copies))
        if count == 1 and single and pairs[-1][1] == column:
            pairs[-1] = (pairs[-1][0], column + 1)
        else:
            pairs += [(column, column + 1)] * count
        single = count == 1
    return pairs


def folded(pairs: Iterable[tuple[int, int]]) -> Runs:
    """Return equal neighbours among pairs as one run, and columns in a row that are repeated equally often."""
    runs: list[tuple[int, ...]] = []
    for (start, stop), copies in groupby(pairs):
        times = len(list(copies))
        if times == 1:
            runs.append((start, stop))
        elif runs and min(start, runs[-1][0]) >= 0 and stop == start + 1 and _repeated(runs[-1]) == (start, times):
            runs[-1] = (runs[-1][0], stop, 1, times)
        else:
            runs.append((start, stop, times))
    return tuple(runs)


def _repeated(run: tuple[int, ...]) -> tuple[int, int]:
    """Return where a run ends, and how often each of its columns stands there in succession."""
    ((start, stop, times, each),) = _counted((run,))
    if stop == start + 1:
        return stop, times * each
    return stop, each


def unfolded(runs: Runs) -> Pairs:
    """Return runs as pairs alone."""
    pairs: list[tuple[int, int]] = []
    for start, stop, times, each in _counted(runs):
        parts = [(start, stop)]
        if each > 1:
            parts = [(column, column + 1) for column in range(start, stop) for _ in range(each)]
        pairs += parts * times
    return tuple(pairs)


def _counted(runs: Runs) -> list[tuple[int, int, int, int]]:
    """Return ``(start, stop, times, each)`` of every run."""
    return [(*run, 1, 1)[: max(4, len(run))] for run in runs]  # pyright: ignore[reportReturnType]


def width_of(runs: Runs) -> int:
    """Return how many columns runs have."""
    return sum((stop - start) * times * each for start, stop, times, each in _counted(runs))


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
    """Return the columns of ``x [..., W]`` side by side, in memory of their own."""
    parts: list[Tensor] = []
    copied = False
    for start, stop, times, each in _counted(columns):
        part = x.new_zeros(1).expand(*x.shape[:-1], stop - start)
        if start >= 0:
            part = x[..., start:stop]
        if each > 1:
            part = part.repeat_interleave(each, -1)
        if times > 1:
            part = part.repeat(*[1] * (part.dim() - 1), times)
        parts.append(part)
        copied = each > 1 or times > 1
    if copied and len(parts) == 1:
        return parts[0]
    return torch.cat(parts, -1)


def put_back(y: Tensor, columns: Runs, width: int) -> Tensor:
    """Return the transpose of `take`, ``[..., width]``: what was taken more than once is summed, what was not is
    zero."""
    x = y.new_zeros(*y.shape[:-1], width)
    counted = _counted(columns)
    sizes = [(stop - start) * times * each for start, stop, times, each in counted]
    for (start, stop, times, each), part in zip(counted, y.split(sizes, -1), strict=True):
        if start >= 0:
            x[..., start:stop] += part.unflatten(-1, (times, -1, each)).sum((-3, -1))
    return x


def fits(columns: Runs, source: int, width: int) -> bool:
    """Return True if these are `width` columns of a value that is `source` wide."""
    if not all(_well_formed(run) for run in columns):
        return False
    inside = all(start < stop <= (source if start >= 0 else 0) for start, stop, *_ in columns)
    return inside and width == width_of(columns)


def _well_formed(run: tuple[int, ...]) -> bool:
    if len(run) == 4:
        return run[0] >= 0 and run[2] > 0 and run[3] > 1
    return len(run) == 2 or (len(run) == 3 and run[2] > 1)


def compose(outer: Runs, inner: Runs) -> Runs:
    """Return runs of `inner`, which count within those of `outer`, as runs of what `outer` counts in; neighbours
    joined.

    Runs of negative numbers are zeros, whatever they are counted in.
    """
    places = unfolded(outer)
    known: dict[tuple[int, int], list[tuple[int, int]]] = {}
    taken: list[tuple[int, int]] = []
    for pair in unfolded(inner):
        if pair not in known:
            known[pair] = _within(places, *pair)
        taken += known[pair]
    pairs: list[tuple[int, int]] = []
    for zeros, group in groupby(taken, lambda pair: pair[0] < 0):
        if zeros:
            pairs += group
        else:
            pairs += _pairs_of(column for pair in group for column in range(*pair))
    return folded(pairs)


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
