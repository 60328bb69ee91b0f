"""What one number of a stored tensor is, as the template that stores it says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InPrefix:
    """Where prefixes hold a number: at `number` of the embedding of prefix `prefix`, while weight tile `tile` (row,
    column) is in them."""

    tile: tuple[int, int]
    prefix: int
    number: int


@dataclass(frozen=True)
class Element:
    """One number of a tensor that is stored.

    part: ``weight``, ``bias``, ``gain``, ``table``, ``score vector``, ``rate``, or ``padding``; parameter: the
    auxiliary's, as the program names it, or whose rate it is; entry: its index there, None for padding and rates; row,
    column: of the weights (of vectors a row alone, -1 for what there is not); expert: whose, -1 without any; places:
    where it stands in prefixes, several times for a bias of which there are copies; step: of a rate.
    """

    part: str
    parameter: str
    entry: tuple[int, ...] | None
    row: int = -1
    column: int = -1
    expert: int = -1
    places: tuple[InPrefix, ...] = ()
    step: int = -1
