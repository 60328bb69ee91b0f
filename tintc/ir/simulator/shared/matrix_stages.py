"""Products with matrices of zeros and ones, tile by tile, as split operations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tintc.ir.block_specs import LinearSpec, SplitStage, TensorSpec
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.structure import StructuralBlock


def matrix_stages(layout: Layout, entries: Sequence[tuple[int, int]]) -> tuple[SplitStage, ...]:
    """Return stages that multiply slot 0 by the matrix M ``[P, P]`` that is 1 at `entries` ``(to, from)``, and 0
    elsewhere.

    Cut M into S' times S' blocks ``M_ji [d_h, d_h]``. Dimension-wise: head (j, i) receives chunk i of slot 0.
    Split-wise: head (j, i) is multiplied by M_ji. Dimension-wise: chunk j of slot 0 receives the sum of the heads (j,
    i), which is chunk j of the product; all others become zero. QED.
    """
    heads = layout.n_heads
    d_h = layout.d_h
    shards = layout.shards
    square = shards * shards

    def spread() -> Tensor:
        weight = torch.zeros(square, heads, dtype=torch.float64)
        weight[torch.arange(square), torch.arange(square) % shards] = 1
        return weight.expand(d_h, -1, -1).clone()

    def blocks() -> Tensor:
        weight = torch.zeros(square, d_h, d_h, dtype=torch.float64)
        for to, source in entries:
            weight[to // d_h * shards + source // d_h, to % d_h, source % d_h] = 1
        return weight

    def gather() -> Tensor:
        weight = torch.zeros(heads, square, dtype=torch.float64)
        weight[torch.arange(square) // shards, torch.arange(square)] = 1
        return weight.expand(d_h, -1, -1).clone()

    return (
        SplitStage("dimension", heads, d_h, TensorSpec((d_h, square, heads), spread), n_out=square),
        SplitStage("split", square, d_h, TensorSpec((square, d_h, d_h), blocks)),
        SplitStage("dimension", square, d_h, TensorSpec((d_h, heads, square), gather), n_out=heads),
    )


Ones = dict[tuple[int, int], list[tuple[int, int]]]
"""The ones of a matrix, ``(to, from)`` within each tile ``(row, column)`` that has any."""


def ones_by_tile(ones: Iterable[tuple[int, int]], pitch: int) -> Ones:
    """Return the ones of a matrix, ``(to, from)``, by its tiles ``[P, P]``."""
    tiles: Ones = {}
    for to, source in ones:
        tiles.setdefault((to // pitch, source // pitch), []).append((to % pitch, source % pitch))
    return tiles


def matrix_blocks(layout: Layout, name: str, tiles: Ones) -> dict[str, StructuralBlock]:
    """Return the blocks of `matrix_product`, by name."""
    return {
        tile_name(name, *tile): StructuralBlock(LinearSpec(matrix_stages(layout, ones))) for tile, ones in tiles.items()
    }


def tile_name(name: str, row: int, column: int) -> str:
    """Return the name of a tile's block."""
    return f"{name}_{row}_{column}"


def matrix_product(run: LiteralRun, name: str, tiles: Ones, x: Tiles, count: int) -> Tiles:
    """Return ``M x`` in `count` tiles.

    Tile r of the result is ``sum_c M_rc x_c`` over the tiles c of x, which is the product of M cut into tiles
    ``[P, P]``. Every term is one chain of `matrix_stages`; a residual connection adds them; tiles of M without any one
    are left out. QED.
    """
    y: Tiles = []
    for row in range(count):
        total = torch.zeros_like(x[0])
        for column, tile in enumerate(x):
            if (row, column) in tiles:
                total = total + run.slot(run.apply(tile_name(name, row, column), run.embed([tile])))
        y.append(total)
    return y
