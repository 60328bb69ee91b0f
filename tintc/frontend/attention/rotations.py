"""Rotary embeddings, read off the maps from source columns to head coordinates, position by position.

Coordinates rotate in pairs. The pairs and their frequencies are read at position 1; that the reading holds at all
positions is for the caller to check.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


class UnsupportedHeadMap(Exception):
    """The operand is not cut from its source as heads are; the message is the reason, a sentence without full stop."""


@dataclass(frozen=True)
class Rotation:
    """Rotary embedding: frequencies ``[n]`` of the first 2n coordinates of every head; style half or interleaved."""

    frequencies: Tensor
    style: str


@dataclass(frozen=True)
class Pairs:
    """Coordinates ``lower [n]``, ``upper [n]`` of a head that rotate together, by `angles` ``[n]`` at position 1."""

    lower: Tensor
    upper: Tensor
    angles: Tensor

    def style(self) -> str:
        """Return how the pairs lie at the beginning of a head, "half" or "interleaved"; empty if they do not."""
        n = len(self.lower)
        first = torch.arange(n)
        if n > 1 and torch.equal(self.lower, 2 * first) and torch.equal(self.upper, 2 * first + 1):
            return "interleaved"
        if torch.equal(self.lower, first) and torch.equal(self.upper, first + n):
            return "half"
        return ""

    def completed(self, head_dim: int) -> Pairs:
        """Return the pairs with others of angle 0, so that there are all ``(i, i + head_dim / 2)``.

        Where the pairs are not some of these, they are returned as they are.
        """
        half = head_dim // 2
        if head_dim % 2 or bool((self.upper - self.lower != half).any()):
            return self
        lower = torch.arange(half)
        angles = self.angles.new_zeros(half)
        angles[self.lower] = self.angles
        return Pairs(lower, lower + half, angles)

    def order(self, head_dim: int) -> Tensor:
        """Return a permutation of the coordinates that brings the pairs to the beginning, in style half."""
        paired = torch.cat((self.lower, self.upper))
        rest = [i for i in range(head_dim) if i not in set(paired.tolist())]
        return torch.cat((paired, torch.tensor(rest, dtype=torch.long)))


def entries(matrix: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return indices and values of a sparse matrix's entries that are not rounding noise."""
    index = matrix.indices()
    values = matrix.values()
    if not values.numel():
        return index, values
    kept = values.abs() > tolerance * values.abs().max()
    return index[:, kept], values[kept]


def read_pairs(second: Tensor, columns: Tensor, factor: float, tolerance: float) -> Pairs | None:
    """Return pairs and angles from the map ``[H, d, W]`` at position 1; None if no two coordinates mix there."""
    n_heads = columns.shape[0]
    cos, sin, partner = _read_rotations(second, columns, factor, tolerance)
    alike = torch.allclose(cos, cos[:1], atol=tolerance) and torch.allclose(sin, sin[:1], atol=tolerance)
    if not (alike and torch.equal(partner, partner[:1].expand(n_heads, -1))):
        raise UnsupportedHeadMap("its heads rotate differently")
    rotated = (partner[0] >= 0).nonzero().flatten()
    if not rotated.numel():
        return None
    lower = rotated[partner[0][rotated] > rotated]
    upper = partner[0][lower]
    if not torch.equal(partner[0][upper], lower) or 2 * len(lower) != len(rotated):
        raise UnsupportedHeadMap("its coordinates do not turn in pairs")
    return Pairs(lower, upper, torch.atan2(sin[0][upper], cos[0][lower]))


def _read_rotations(second: Tensor, columns: Tensor, factor: float, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return cos, sin and the partner's coordinate (-1: none) of every head coordinate ``[H, d]``, at position 1."""
    n_heads, head_dim = columns.shape
    cos, sin = torch.zeros(2, n_heads, head_dim, dtype=torch.float64)
    partner = torch.full((n_heads, head_dim), -1, dtype=torch.long)
    place = [{int(column): i for i, column in enumerate(row)} for row in columns]
    index, values = entries(second, tolerance)
    for (h, i, column), value in zip(index.T.tolist(), (values / factor).tolist(), strict=True):
        j = place[h].get(column)
        if j is None:
            raise UnsupportedHeadMap("its heads mix with each other as the position changes")
        if j == i:
            cos[h, i] = value
        elif partner[h, i] >= 0:
            raise UnsupportedHeadMap("more than two of its coordinates mix as the position changes")
        else:
            partner[h, i] = j
            sin[h, i] = value
    return cos, sin, partner


def refine(angles: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Return frequencies to the precision of a table of cosines and sines that was rounded to fp32.

    An angle of 1/1000 read from such a table at position 1 is wrong by a part in ten thousand, but the angle at
    position p is known as well and p times as large. before, after: the pairs ``[T, n, 2]`` of one head at every
    position; with p = 1, 2, 4, ... the number of whole turns is always known from the step before. QED.
    """
    rotated_by = torch.atan2(after[..., 1], after[..., 0]) - torch.atan2(before[..., 1], before[..., 0])
    position = 1
    while position < len(rotated_by):
        error = rotated_by[position] - angles * position
        angles = angles + (error - 2 * math.pi * torch.round(error / (2 * math.pi))) / position
        position *= 2
    return angles
