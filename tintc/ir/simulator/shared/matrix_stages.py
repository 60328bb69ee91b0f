"""A product of a slot with a matrix of zeros and ones, as split operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tintc.ir.block_specs import SplitStage, TensorSpec
from tintc.ir.layout import Layout


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
