"""Runs of columns ``(start, stop)``, the way `aux.select` and `sim.select` write them; negative ones are zeros."""

from __future__ import annotations

import torch
from torch import Tensor

Runs = tuple[tuple[int, int], ...]


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
    found: list[tuple[int, int]] = []
    for start, stop in inner:
        if start < 0:
            found.append((start - stop, 0))
            continue
        base = 0
        for first, last in outer:
            a, b = max(start, base), min(stop, base + last - first)
            if a < b:
                run = (first + a - base, first + b - base)
                if found and found[-1][1] == run[0] and found[-1][0] >= 0:
                    found[-1] = (found[-1][0], run[1])
                else:
                    found.append(run)
            base += last - first
    return tuple(found)
