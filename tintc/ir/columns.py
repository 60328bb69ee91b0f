"""Runs of integers: ``(start, stop)``, as `aux.select` and `sim.select` write columns, and ``(start, stop, step)``.

Negative columns are zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Runs = tuple[tuple[int, int], ...]
StridedRuns = tuple[tuple[int, int, int], ...]
"""Numbers ``start, start + step, ...`` below ``stop``."""


def runs_of(columns: Iterable[int]) -> Runs:
    """Return ``[4, 5, 6, 0, 1]`` as ``((4, 7), (0, 2))``."""
    runs: list[tuple[int, int]] = []
    for column in columns:
        if runs and runs[-1][1] == column:
            runs[-1] = (runs[-1][0], column + 1)
        else:
            runs.append((column, column + 1))
    return tuple(runs)


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


def unit_runs(runs: Iterable[Sequence[int]]) -> Runs:
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
    zeros = x.new_zeros(*x.shape[:-1], 1)
    return torch.cat([x[..., a:b] if a >= 0 else zeros.expand(*x.shape[:-1], b - a) for a, b in columns], -1)


def put_back(y: Tensor, columns: Runs, width: int) -> Tensor:
    """Return the transpose of `take`, ``[..., width]``: what was taken more than once is summed, what was not is
    zero."""
    x = y.new_zeros(*y.shape[:-1], width)
    for (a, b), part in zip(columns, y.split([b - a for a, b in columns], -1), strict=True):
        if a >= 0:
            x[..., a:b] += part
    return x


def fits(columns: Runs, source: int, width: int) -> bool:
    """Return True if these are `width` columns of a value that is `source` wide."""
    inside = all(start < stop <= (source if start >= 0 else 0) for start, stop in columns)
    return inside and width == sum(stop - start for start, stop in columns)


def compose(outer: Runs, inner: Runs) -> Runs:
    """Return runs of `inner`, which count within those of `outer`, as runs of what `outer` counts in; neighbours
    joined.

    Runs of negative numbers are zeros, whatever they are counted in.
    """
    runs: list[tuple[int, int]] = []
    for start, stop in inner:
        if start < 0:
            runs.append((start - stop, 0))
            continue
        base = 0
        for first, last in outer:
            a = max(start, base)
            b = min(stop, base + last - first)
            if a < b:
                run = (first + a - base, first + b - base)
                if runs and runs[-1][1] == run[0] and runs[-1][0] >= 0:
                    runs[-1] = (runs[-1][0], run[1])
                else:
                    runs.append(run)
            base += last - first
    return tuple(runs)
