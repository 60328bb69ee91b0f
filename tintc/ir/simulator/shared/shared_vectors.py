"""Gains and biases that heads share: one vector of a head's width, brought to every head, and gradients added up.

Both are products of a slot with a matrix of zeros and ones (`matrix_stages`), which is exact.
"""

from __future__ import annotations

from torch import Tensor

from tintc.ir.block_specs import LinearSpec
from tintc.ir.core import Value
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.shared.matrix_stages import matrix_stages
from tintc.ir.structure import StructuralBlock


def heads_by_slot(layout: Layout, weights: Value, value: Value) -> list[int]:
    """Return how many heads of `value` every one of its slots has, all of which share `weights`."""
    head = weights.type.width
    heads = value.type.width // head
    if heads == 1:
        return [1]
    most = layout.pitch // head
    return [min(most, heads - first) for first in range(0, heads, most)]


def spread_blocks(layout: Layout, weights: Value, value: Value) -> dict[str, StructuralBlock]:
    """Return the blocks of `spread_out`: coordinate i of a slot is written to coordinate i of each of its heads."""
    return _blocks(layout, "to_heads", weights, value)


def gather_blocks(layout: Layout, weights: Value, value: Value) -> dict[str, StructuralBlock]:
    """Return the blocks of `gathered`: coordinate i becomes the sum over the heads of their coordinates i."""
    return _blocks(layout, "of_heads", weights, value)


def _blocks(layout: Layout, kind: str, weights: Value, value: Value) -> dict[str, StructuralBlock]:
    head = weights.type.width
    blocks: dict[str, StructuralBlock] = {}
    for heads in heads_by_slot(layout, weights, value):
        entries = [(h * head + i, i) for h in range(heads) for i in range(head)]
        if kind == "of_heads":
            entries = [(source, to) for to, source in entries]
        if heads > 1:
            blocks[_name(kind, heads, head)] = StructuralBlock(LinearSpec(matrix_stages(layout, entries)))
    return blocks


def _name(kind: str, heads: int, head: int) -> str:
    return f"{kind}_{heads}x{head}"


def spread_out(run: LiteralRun, vector: Tensor, weights: Value, value: Value) -> Tiles:
    """Return a slot ``[B, T, P]`` that holds one head's vector as the slots of a value whose heads share it."""
    tiles: Tiles = []
    for heads in heads_by_slot(run.layout, weights, value):
        tile = vector
        if heads > 1:
            tile = run.slot(run.apply(_name("to_heads", heads, weights.type.width), run.embed([vector])))
        tiles.append(tile)
    return tiles


def gathered(run: LiteralRun, x: Tiles, weights: Value, value: Value) -> Tensor:
    """Return the sum over all heads of a value, in the first coordinates of a slot: the transpose of `spread_out`."""
    parts: Tiles = []
    for tile, heads in zip(x, heads_by_slot(run.layout, weights, value), strict=True):
        if heads > 1:
            tile = run.slot(run.apply(_name("of_heads", heads, weights.type.width), run.embed([tile])))
        parts.append(tile)
    return sum(parts[1:], parts[0])
