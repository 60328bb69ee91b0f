"""Reading a rotary embedding off the maps from source columns to head coordinates, position by position.

Coordinates turn in pairs. What pairs and what frequencies is read at position 1; that the reading holds at all
positions is for the caller to check.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


class NotHeads(Exception):
    """The operand is not cut from its source as heads are; the message is the reason, a sentence without full stop."""


@dataclass(frozen=True)
class Rotation:
    """Rotary embedding: frequencies ``[n]`` of the first 2n coordinates of every head; style half or interleaved."""

    frequencies: Tensor
    style: str


@dataclass(frozen=True)
class Pairs:
    """Coordinates ``lower [n]``, ``upper [n]`` of a head that turn together, by `angles` ``[n]`` at position 1."""

    lower: Tensor
    upper: Tensor
    angles: Tensor

    def style(self) -> str:
        """How the pairs lie at the beginning of a head; empty if they lie otherwise."""
        n, first = len(self.lower), torch.arange(len(self.lower))
        if n > 1 and torch.equal(self.lower, 2 * first) and torch.equal(self.upper, 2 * first + 1):
            return "interleaved"
        return "half" if torch.equal(self.lower, first) and torch.equal(self.upper, first + n) else ""

    def completed(self, head_dim: int) -> Pairs:
        """With pairs that turn by nothing, where those that turn are some of ``(i, i + head_dim / 2)``."""
        half = head_dim // 2
        if head_dim % 2 or bool((self.upper - self.lower != half).any()):
            return self
        lower, angles = torch.arange(half), self.angles.new_zeros(half)
        angles[self.lower] = self.angles
        return Pairs(lower, lower + half, angles)

    def order(self, head_dim: int) -> Tensor:
        """A permutation of the coordinates that brings the pairs to the beginning, in style half."""
        turned = torch.cat((self.lower, self.upper))
        rest = [i for i in range(head_dim) if i not in set(turned.tolist())]
        return torch.cat((turned, torch.tensor(rest, dtype=torch.long)))


def entries(matrix: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Indices and values of a sparse matrix's entries that are not rounding noise."""
    index, values = matrix.indices(), matrix.values()
    kept = values.abs() > tolerance * values.abs().max() if values.numel() else values.bool()
    return index[:, kept], values[kept]


def read_pairs(second: Tensor, columns: Tensor, factor: float, tolerance: float) -> Pairs | None:
    """Pairs and angles from the map ``[H, d, W]`` at position 1; None if no two coordinates mix there."""
    n_heads = columns.shape[0]
    cos, sin, partner = _turns(second, columns, factor, tolerance)
    alike = torch.allclose(cos, cos[:1], atol=tolerance) and torch.allclose(sin, sin[:1], atol=tolerance)
    if not (alike and torch.equal(partner, partner[:1].expand(n_heads, -1))):
        raise NotHeads("its heads rotate differently")
    turned = (partner[0] >= 0).nonzero().flatten()
    if not turned.numel():
        return None
    lower = turned[partner[0][turned] > turned]
    upper = partner[0][lower]
    if not torch.equal(partner[0][upper], lower) or 2 * len(lower) != len(turned):
        raise NotHeads("its coordinates do not turn in pairs")
    return Pairs(lower, upper, torch.atan2(sin[0][upper], cos[0][lower]))


def _turns(second: Tensor, columns: Tensor, factor: float, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """cos, sin and the partner's coordinate (-1: none) of every head coordinate ``[H, d]``, at position 1."""
    n_heads, head_dim = columns.shape
    cos, sin = torch.zeros(2, n_heads, head_dim, dtype=torch.float64)
    partner = torch.full((n_heads, head_dim), -1, dtype=torch.long)
    place = [{int(column): i for i, column in enumerate(row)} for row in columns]
    index, values = entries(second, tolerance)
    for (h, i, column), value in zip(index.T.tolist(), (values / factor).tolist(), strict=True):
        j = place[h].get(column)
        if j is None:
            raise NotHeads("its heads mix with each other as the position changes")
        if j == i:
            cos[h, i] = value
        elif partner[h, i] >= 0:
            raise NotHeads("more than two of its coordinates mix as the position changes")
        else:
            partner[h, i], sin[h, i] = j, value
    return cos, sin, partner


def refine(angles: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Frequencies to the precision of a table of cosines and sines that was rounded to fp32.

    An angle of 1/1000 read from such a table at position 1 is wrong by a part in ten thousand, but the angle at
    position p is known as well and p times as large. before, after: the pairs ``[T, n, 2]`` of one head at every
    position; with p = 1, 2, 4, ... the number of whole turns is always known from the step before. QED.
    """
    turned = torch.atan2(after[..., 1], after[..., 0]) - torch.atan2(before[..., 1], before[..., 0])
    position = 1
    while position < len(turned):
        error = turned[position] - angles * position
        angles = angles + (error - 2 * math.pi * torch.round(error / (2 * math.pi))) / position
        position *= 2
    return angles
