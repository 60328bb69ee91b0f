"""Sums of gradients, of which an optimiser makes a step: their fused arithmetic, and their tiles.

In fused execution a sum is `FusedWeights` without weights: pending updates of a linear layer, or of experts, each with
its rate, and tensors ``[B, *part]`` of a norm, or of what somebody wants to see. A sum holds minus the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tintc.ir.block_specs import LinearSpec
from tintc.ir.core import Type
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.fused_base import FusedWeights, Pending
from tintc.ir.simulator.interface.literal_base import ExpertTiles, PrefixTiles, Tile
from tintc.ir.simulator.shared.descent_common import per_example, plus
from tintc.ir.simulator.shared.grouped import bias_sums, expert_sums
from tintc.ir.simulator.shared.linear_common import bias_dims, main_part, matrix_sides
from tintc.ir.structure import StructuralBlock, chunk_map

FLOOR = 1e-24
"""What is added to a squared norm: a gradient whose norm is far below 1e-12 counts as none."""

Factor = Tensor | float


def times_block(layout: Layout, factor: float) -> dict[str, StructuralBlock]:
    """Return the block that multiplies whole embeddings by a number, by its name.

    Claim: the dimension-wise operation with ``factor I`` in every column multiplies every chunk by the factor. QED.
    """
    chunks = {(chunk, chunk): factor for chunk in range(layout.n_heads)}
    return {times_name(factor): StructuralBlock(LinearSpec((chunk_map(layout.n_heads, layout.d_h, chunks),)))}


def times_name(factor: float) -> str:
    """Return that block's name, in which no dot may stand."""
    return f"times_{factor!r}".replace(".", "p").replace("-", "m").replace("+", "")


def tiles_of(kind: Type, make: Callable[[int, int], Tile], layout: Layout) -> PrefixTiles | ExpertTiles:
    """Return the tiles of weights, each made for its row and column; those of a norm are one."""
    rows = columns = 1
    if kind.kind != "norm":
        dout, din = matrix_sides(kind)
        rows, columns = layout.tiles(dout), layout.tiles(din)

    def one() -> PrefixTiles:
        return PrefixTiles([[make(row, column) for column in range(columns)] for row in range(rows)])

    if kind.kind != "experts":
        return one()
    return ExpertTiles([one() for _ in range(kind.dims[0])])


def each_of(tiles: PrefixTiles | ExpertTiles) -> list[PrefixTiles]:
    """Return the tiles of every expert, or those of the one layer."""
    if isinstance(tiles, ExpertTiles):
        return tiles.each
    return [tiles]


def like(tiles: PrefixTiles | ExpertTiles, each: list[PrefixTiles]) -> PrefixTiles | ExpertTiles:
    """Return tiles of experts where those are, else the first."""
    if isinstance(tiles, ExpertTiles):
        return ExpertTiles(each)
    return each[0]


def held_sums(tiles: PrefixTiles, kind: Type) -> list[list[Tile]]:
    """Return the tiles that may hold sums: a norm's descent has one."""
    if kind.kind == "norm":
        return [tiles.rows[0][:1]]
    return tiles.rows


def scaled(update: Pending, factor: Factor) -> Pending:
    """Return an update times a number, or times one for every example."""
    if isinstance(factor, Tensor):
        return replace(update, dy=(update.dy * factor.reshape(-1, 1, 1)).to(update.dy.dtype))
    return replace(update, rate=update.rate * factor)


def times(sums: FusedWeights, factor: Factor) -> FusedWeights:
    """Return sums times a number, or times one for every example."""

    def part(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor * per_example(factor, tensor)

    pending = tuple(scaled(update, factor) for update in sums.pending)
    return FusedWeights(part(sums.weight), part(sums.bias), pending)


def joined(updates: Iterable[Pending]) -> tuple[Pending, ...]:
    """Return updates, those of the same inputs as one: ``dY_1^T X + dY_2^T X = (dY_1 + dY_2)^T X``."""
    kept: list[Pending] = []
    for update in updates:
        for index, other in enumerate(kept):
            if _of_same_inputs(update, other):
                dy = update.dy * update.rate + other.dy * other.rate
                kept[index] = replace(other, dy=dy, rate=1.0)
                break
        else:
            kept.append(update)
    return tuple(kept)


def _of_same_inputs(a: Pending, b: Pending) -> bool:
    """Return True if two updates of one layer have the same inputs, for the same experts."""
    if a.source is not b.source or a.dy.shape != b.dy.shape or a.x.shape != b.x.shape:
        return False
    if a.experts is None or b.experts is None:
        return a.experts is b.experts
    return a.experts.data_ptr() == b.experts.data_ptr()


def written_out(sums: FusedWeights, kind: Type, examples: int) -> dict[str, Tensor]:
    """Return sums as tensors ``[B, *part]``, by part; what is zero is left out."""
    weight = _batched(sums.weight, len(kind.dims), examples)
    bias = _batched(sums.bias, bias_dims(kind), examples)
    for update in sums.pending:
        dy = update.dy * update.rate
        if update.experts is None:
            weight = plus(weight, dy.transpose(1, 2) @ update.x)
            made = dy.sum(1)
        else:
            count = kind.dims[0]
            weight = plus(weight, expert_sums(dy, _inputs(update), update.experts, count))
            made = bias_sums(dy, update.experts, count)
        if update.bias:
            bias = plus(bias, made * update.bias)
    parts = {main_part(kind): weight, "bias": bias}
    return {part: tensor for part, tensor in parts.items() if tensor is not None}


def _batched(tensor: Tensor | None, dims: int, examples: int) -> Tensor | None:
    """Return a tensor with the examples first."""
    if tensor is None or tensor.dim() > dims:
        return tensor
    return tensor.expand(examples, *tensor.shape)


def _inputs(update: Pending) -> Tensor:
    """Return X with one vector for each of dY's."""
    return update.x.repeat_interleave(update.dy.shape[1] // update.x.shape[1], 1)


def squared_norm(sums: FusedWeights, kind: Type, examples: int) -> Tensor | None:
    """Return the sum of all squares of each example ``[B]``; None if there is no term.

    Of factors with t vectors it takes t x t products where that is less than writing the sums out::

        |dY^T X|^2 = sum of all entries of (dY dY^T) * (X X^T)
    """
    if not sums.pending and sums.weight is None and sums.bias is None:
        return None
    vectors = sum(update.dy.shape[1] for update in sums.pending)
    dout, din = matrix_sides(kind)
    whole = sums.weight is not None or sums.bias is not None
    if whole or vectors * (dout + din) > dout * din * _used(kind, vectors):
        return squares(written_out(sums, kind, examples).values())
    dy = torch.cat([update.dy * update.rate for update in sums.pending], 1)
    x = torch.cat([_inputs(update) for update in sums.pending], 1)
    outputs = dy @ dy.transpose(1, 2)
    if sums.pending[0].experts is not None:
        experts = torch.cat([update.experts for update in sums.pending if update.experts is not None], 1)
        outputs = outputs * (experts[:, :, None] == experts[:, None, :])
    total = (outputs * (x @ x.transpose(1, 2))).sum((1, 2))
    if sums.pending[0].bias:
        total = total + outputs.sum((1, 2))
    # Rounding may leave less than zero of sums that are nearly zero.
    return total.clamp(min=0)


def _used(kind: Type, vectors: int) -> int:
    """Return of how many experts, at most, sums are written out; 1 where there are none."""
    if kind.kind != "experts":
        return 1
    return min(kind.dims[0], vectors)


def squares(parts: Iterable[Tensor]) -> Tensor:
    """Return the sum of all squares of tensors ``[B, ...]``: ``[B]``."""
    sums: Sequence[Tensor] = [part.flatten(1).square().sum(1) for part in parts]
    return sum(sums[1:], sums[0])
