"""`sim.linear_backward`: dx = W^T dy (Def. D.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from torch import Tensor

from tintc.ir.block_specs import AttentionSpec, Positions
from tintc.ir.core import Value, register
from tintc.ir.layout import Layout
from tintc.ir.routing import route
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.interface.fused_kernels import apply_transposed
from tintc.ir.simulator.interface.literal_base import LiteralRun, PrefixTiles, Tiles, residual
from tintc.ir.simulator.interface.semantics import Interpretation, Weights
from tintc.ir.simulator.shared.linear_common import (
    check_linear,
    main_chunks,
    rows_to_heads,
    select_chunks,
    weight_tiles,
)
from tintc.ir.structure import StructuralBlock, chunk_map, indicator


@cache
def backward_block(layout: Layout) -> StructuralBlock:
    """Return the linear-backward attention.

    Claim: with dy_t in slot 0 of token t, slot 0 becomes ``sum_r dy_t[r] w_r``, which is W^T dy_t.

    Main head (s, j): W_q brings ``dy_t[kS+s]`` to column k of the query, for every j; P_k with lam_k = 1 makes prefix
    k's key the one-hot e_k (W_k = 0, so tokens' keys are 0); W_v keeps shard j of row kS+s. The score of token t with
    prefix k is ``dy_t[kS+s]``, so the output is ``sum_k dy_t[kS+s] * (shard j of w_{kS+s})``.

    W_o adds over s into chunk j: ``sum_{k,s} dy_t[kS+s] w_{kS+s}``, shard by shard; rows beyond dout are zero and
    contribute nothing. W is read as it is stored: no transposed copy. QED. It is exact.
    """
    shards = layout.shards
    heads = layout.n_heads
    width = layout.d_h
    main = main_chunks(layout)
    add = chunk_map(heads, width, {(j, s * shards + j): 1.0 for s in range(layout.stack) for j in range(shards)})
    spec = AttentionSpec(
        n_heads=heads,
        width=width,
        kind="linear",
        w_q=route(heads, width, rows_to_heads(layout)),
        w_k=None,
        w_v=(select_chunks(layout, main),),
        w_o=(add,),
        positions_k=Positions("prefix", indicator(heads, main)),
    )
    return StructuralBlock(spec, "replace")


def backward_tiles(run: LiteralRun, weights: PrefixTiles, dy: Tiles) -> Tiles:
    """Return the tiles of dx: row tiles' dx are added, column tiles' dx concatenated. Prefixes are put back."""
    dx: Tiles = []
    for row, dy_tile in zip(weights.rows, dy, strict=True):
        products: Tiles = []
        for c, tile in enumerate(row):
            e = run.apply("linear_backward", run.embed([dy_tile], tile))
            row[c] = run.prefix(e)
            products.append(run.slot(e))
        dx = residual(dx, products) if dx else products
    return dx


@register("sim.linear_backward")
@dataclass(eq=False, kw_only=True)
class LinearBackward(SimOp):
    """(W, dy) -> dx. `tiles` (added by planning): row and column tiles."""

    tiles: tuple[int, int] = (0, 0)

    def verify(self) -> None:
        self.expect(len(self.operands) == 2, "takes weights and dy")
        check_linear(self, self.operands[0], self.operands[1], self.result)

    def interpret(self, run: Interpretation, w: Weights, dy: Tensor) -> Tensor:
        assert w.weight is not None
        return dy @ w.weight

    def fused(self, run: FusedRun, w: FusedWeights, dy: Tensor) -> Tensor:
        return apply_transposed(w, dy)

    def with_tiles(self, layout: Layout) -> LinearBackward:
        return replace(self, tiles=weight_tiles(layout, self.operands[0]))

    def weight_operand(self) -> Value:
        return self.operands[0]

    def multiply_adds(self, costs: CostModel, w: Value, dy: Value) -> int:
        n = costs.lengths[self]
        dout, din = w.type.dims
        return n * dout * din + sum(n * update.train * (din + dout) for update in costs.updates(w))

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        return {"linear_backward": backward_block(layout)}

    def scores(self, layout: Layout, run: Interpretation, w: Weights, dy: Tensor) -> Sequence[Tensor]:
        return (dy,)

    def literal(self, run: LiteralRun, w: PrefixTiles, dy: Tiles) -> Tiles:
        return backward_tiles(run, w, dy)
