"""`sim.linear_descent`: W <- W - eta sum_t dy_t x_t^T, b <- b - eta sum_t dy_t (Def. D.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from tintc.ir.block_specs import AttentionSpec, Positions
from tintc.ir.core import Value, register
from tintc.ir.layout import Layout
from tintc.ir.routing import route
from tintc.ir.simulator.interface.cost_model import CostModel, Deferral, PendingUpdate
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights, Pending
from tintc.ir.simulator.interface.literal_base import LiteralRun, PrefixTiles, Tile, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation, Weights
from tintc.ir.simulator.shared.descent_common import DescentOp, per_example
from tintc.ir.simulator.shared.linear_common import (
    bias_chunks,
    check_linear,
    copies_of_bias,
    main_chunks,
    rows_to_heads,
    weight_tiles,
)
from tintc.ir.structure import StructuralBlock, chunk_map, indicator


@cache
def descent_block(layout: Layout, main: bool, bias: bool) -> StructuralBlock:
    """Return the linear-descent attention, with main heads, bias heads or both.

    Claim: with dy_t in slot 0 and x_t in slot 1 of the tokens, the output at prefix k, where shard j of row kS+s is
    stored, is ``-sum_t dy_t[kS+s] * (shard j of x_t)`` over train tokens, and ``-sum_t dy_t`` where prefix 0 stores the
    bias. The module's rate multiplies it and the residual connection adds it (the descent gate keeps old and new).

    Query of prefix k: e_k on all used heads (P_q of prefixes, lam_q = 1, W_q = 0).

    Main head (s, j): W_k brings ``dy_t[kS+s]`` to column k of token t's key: the score of prefix k with token t is
    ``dy_t[kS+s]``. W_v takes shard j of x_t, negated (chunk ``S' + j`` to chunk ``s*S' + j``).

    Bias head b: key e_0 for tokens (P_k of tokens, lam_k = 1, W_k = 0 there): score 1 for prefix 0, 0 for the others;
    W_v takes chunk b of dy_t, negated.

    The mask M lets prefixes see train tokens only. W_o is the identity on the used heads: head (s, j) writes exactly
    the chunk in which prefix k stores shard j of row kS+s. QED. The update is exact: ``sum_t dy_t x_t^T`` is the
    gradient of ``sum_t <dy_t, W x_t + b>``.
    """
    shards = layout.shards
    heads = layout.n_heads
    width = layout.d_h
    mains = biases = range(0)
    w_k = positions_k = None
    if main:
        mains = main_chunks(layout)
        w_k = route(heads, width, rows_to_heads(layout))
    if bias:
        biases = bias_chunks(layout)
        positions_k = Positions("tokens", indicator(heads, biases))
    used = [*mains, *biases]
    take = {(head, shards + head % shards): -1.0 for head in mains}
    take |= {(head, b): -1.0 for b, head in enumerate(biases)}
    spec = AttentionSpec(
        n_heads=heads,
        width=width,
        kind="linear",
        w_q=None,
        w_k=w_k,
        w_v=(chunk_map(heads, width, take),),
        w_o=(chunk_map(heads, width, {(head, head): 1.0 for head in used}),),
        positions_q=Positions("prefix", indicator(heads, range(min(used), max(used) + 1))),
        positions_k=positions_k,
        constant=biases,
    )
    return StructuralBlock(spec, "update")


def descent_name(bias: bool) -> str:
    """Return the name of the linear-descent block with or without bias heads."""
    if bias:
        return "linear_descent_bias"
    return "linear_descent"


def descent_blocks(layout: Layout, copies: int, tiles: tuple[int, int]) -> dict[str, StructuralBlock]:
    """Return the blocks of a linear layer's descent, by name; the first `copies` of its column tiles hold the bias."""
    blocks = {}
    if copies < tiles[1]:
        blocks[descent_name(bias=False)] = descent_block(layout, main=True, bias=False)
    if copies:
        blocks[descent_name(bias=True)] = descent_block(layout, main=True, bias=True)
    return blocks


def descent_tiles(
    run: LiteralRun, w: PrefixTiles, copies: int, dy: Tiles, x: Tiles, step: int, rate: Tensor | float
) -> PrefixTiles:
    """Return the weights after the step, tile by tile: row tiles read tiles of dy, column tiles those of x."""
    rows: list[list[Tile]] = []
    for r, row in enumerate(w.rows):
        updated: list[Tile] = []
        for c, tile in enumerate(row):
            block = descent_name(bias=c < copies)
            e = run.apply(block, run.embed([dy[r], x[c]], tile), mask=run.train_mask(step), rate=rate)
            updated.append(run.prefix(e))
        rows.append(updated)
    return PrefixTiles(rows)


def materialise(w: FusedWeights, update: Pending, overwrite: bool) -> FusedWeights:
    """Return weights with an update carried out: ``[dout, din]`` for one example, else ``[B, dout, din]``.

    overwrite: nothing needs `w` any more; what an earlier step has made is then written over.
    """
    assert w.weight is not None and not w.pending
    dy = update.dy
    x = update.x
    bias = w.bias
    if bias is not None:
        # A bias that is held m times receives the full step m times.
        bias = torch.add(bias, dy.sum(1), alpha=update.bias * update.rate)
    if dy.shape[0] == 1 and w.weight.dim() == 2:
        dy = dy[0]
        x = x[0]
    in_place = overwrite and w.owned and not torch.is_grad_enabled()
    weight = _add_product(w.weight, dy.transpose(-1, -2), x, update.rate, in_place)
    return FusedWeights(weight, bias, owned=True)


def _add_product(weight: Tensor, a: Tensor, b: Tensor, factor: float, in_place: bool) -> Tensor:
    """Return ``weight + factor a b`` of matrices, or of a matrix for each example."""
    if a.dim() == 2:
        add = torch.addmm
        add_in_place = weight.addmm_
    else:
        add = torch.baddbmm
        add_in_place = weight.baddbmm_
    if in_place:
        return add_in_place(a, b, alpha=factor)
    return add(weight, a, b, alpha=factor)


@register("sim.linear_descent")
@dataclass(eq=False, kw_only=True)
class LinearDescent(DescentOp):
    """(W, dy, x) -> W'. Where gradients are summed, the sum is kept as pending updates, each with its factors.

    `tiles` (added by planning): row and column tiles. Where the bias is held m times (authors' layout; construction.md,
    section 10), every copy receives the full step.
    """

    tiles: tuple[int, int] = (0, 0)

    def verify(self) -> None:
        self.expect(len(self.operands) == 3, "takes weights, dy and x")
        check_linear(self, *self.operands)
        self.expect(self.result.type == self.operands[0].type, "returns weights of the type it takes")

    def interpret(self, run: Interpretation, w: Weights, dy: Tensor, x: Tensor) -> Weights:
        assert w.weight is not None
        rate = self.factor(run)
        summed = dy * run.inputs.train_mask(self.step)[..., None]
        gradient = summed.transpose(-1, -2) @ x
        weight = w.weight - per_example(rate, gradient) * gradient
        if w.bias is None:
            return Weights(weight, None)
        gradient = copies_of_bias(self.operands[0].type) * summed.sum(1)
        return Weights(weight, w.bias - per_example(rate, gradient) * gradient)

    def fused(self, run: FusedRun, w: FusedWeights, dy: Tensor, x: Tensor) -> FusedWeights:
        """Return the weights with the update pending or carried out, as the plan says."""
        dy = self._summed(run, dy)
        rate = -self.factor(run)
        if isinstance(rate, Tensor):
            dy = (dy * rate.reshape(-1, 1, 1)).to(dy.dtype)
            rate = 1.0
        update = Pending(dy, x, self.operands[2], copies_of_bias(self.operands[0].type), rate)
        if self.sums or run.lazy(self):
            return replace(w, pending=(*w.pending, update))
        return materialise(w, update, run.frees(self, self.operands[0]))

    def _summed(self, run: FusedRun, dy: Tensor) -> Tensor:
        """Return dy where the step sums it, else zero, ``[B, n, dout]``."""
        mask = run.train(dy.shape[1], self.step)
        if mask is None:
            return dy
        return dy * mask

    def updated_parts(self) -> dict[str, tuple[int, ...]]:
        kind = self.operands[0].type
        parts: dict[str, tuple[int, ...]] = {"weight": kind.dims}
        if copies_of_bias(kind):
            parts["bias"] = kind.dims[:1]
        return parts

    def gradient(self, part: str, run: FusedRun, w: FusedWeights, dy: Tensor, x: Tensor) -> Tensor:
        dy = self._summed(run, dy)
        if part == "bias":
            return dy.sum(1) * copies_of_bias(self.operands[0].type)
        return dy.transpose(1, 2) @ x

    def deferral(self) -> Deferral:
        """Return the update. A pending one keeps its dY, which stands in the result, and its X."""
        kept = (self.operands[2], self.result)
        if self.sums:
            return Deferral(f"sums.{self.target}", kept, always=True)
        return Deferral(self.target, kept)

    def multiply_adds(self, costs: CostModel, w: Value, dy: Value, x: Value) -> int:
        if self in costs.lazy:
            costs.pending[self.result] = (*costs.updates(w), PendingUpdate(x, costs.train_end(self.step)))
            return 0
        dout, din = w.type.dims
        return costs.train_end(self.step) * dout * din

    def entries(self, costs: CostModel, result: Value) -> int:
        """Count per-example weights, or the dY of a pending update."""
        dout, din = result.type.dims
        if self in costs.lazy:
            return dout * costs.train_end(self.step)
        return dout * din

    def with_tiles(self, layout: Layout) -> LinearDescent:
        return replace(self, tiles=weight_tiles(layout, self.operands[0]))

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        return descent_blocks(layout, copies_of_bias(self.operands[0].type), self.tiles)

    def slots(self, layout: Layout) -> int:
        return 2

    def scores(self, layout: Layout, run: Interpretation, w: Weights, dy: Tensor, x: Tensor) -> Sequence[Tensor]:
        return (dy * run.inputs.train_mask(self.step)[..., None],)

    def literal(self, run: LiteralRun, w: PrefixTiles, dy: Tiles, x: Tiles) -> PrefixTiles:
        return descent_tiles(run, w, copies_of_bias(self.operands[0].type), dy, x, self.step, self.factor(run))
