"""`sim.linear_forward`: y = W x + b (Def. D.1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

from torch import Tensor

from tintc.ir.auxiliary.base import affine
from tintc.ir.block_specs import AttentionSpec, Positions
from tintc.ir.core import Value, register
from tintc.ir.layout import Layout
from tintc.ir.routing import route
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.interface.fused_kernels import apply_linear
from tintc.ir.simulator.interface.literal_base import LiteralRun, PrefixTiles, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation, Weights
from tintc.ir.simulator.interface.storage import TableCount, attention_cost
from tintc.ir.simulator.shared.linear_common import (
    bias_chunks,
    check_linear,
    copies_of_bias,
    forward_scores,
    heads_to_rows,
    main_chunks,
    select_chunks,
    weight_tiles,
)
from tintc.ir.structure import StructuralBlock, chunk_map, indicator


@cache
def forward_block(layout: Layout, bias: bool) -> StructuralBlock:
    """Return the linear-forward attention, with or without bias heads.

    Claim: at token t, coordinate ``kS+s`` of slot 0 becomes ``<w_{kS+s}, x_t> + b_{kS+s}``.

    Main head (s, j): W_q copies shard j of x_t there (chunk j to chunk ``s*S' + j``); W_k keeps shard j of row kS+s at
    prefix k; P_v with lam_v = 1 makes prefix k's value the one-hot e_k, and W_v is 0 there. So the output is
    ``sum_k <shard j of w_{kS+s}, shard j of x_t> e_k``: coordinate k holds the product restricted to shard j. Tokens'
    values are 0, so tokens contribute nothing.

    Bias head b: query e_0 (P_q of tokens, lam_q = 1), key e_k (P_k of prefixes, lam_k = 1), W_q and W_k being 0 there:
    score 1 with prefix 0, else 0. W_v keeps the bias chunk, which only prefix 0 holds: the output is chunk b of b.

    W_o adds column k of the heads (s, j) over j, which completes the inner product, and brings it to coordinate kS+s;
    bias chunk b is added to chunk b. QED.
    """
    shards = layout.shards
    heads = layout.n_heads
    width = layout.d_h
    main = main_chunks(layout)
    biases = range(0)
    positions_q = positions_k = w_v = None
    if bias:
        biases = bias_chunks(layout)
        positions_q = Positions("tokens", indicator(heads, biases))
        positions_k = Positions("prefix", indicator(heads, biases))
        w_v = (select_chunks(layout, biases),)
    copy = chunk_map(heads, width, {(s * shards + j, j): 1.0 for s in range(layout.stack) for j in range(shards)})
    spec = AttentionSpec(
        n_heads=heads,
        width=width,
        kind="linear",
        w_q=(copy,),
        w_k=(select_chunks(layout, main),),
        w_v=w_v,
        w_o=route(heads, width, heads_to_rows(layout), [(chunk, b) for b, chunk in enumerate(biases)]),
        positions_q=positions_q,
        positions_k=positions_k,
        positions_v=Positions("prefix", indicator(heads, main)),
        constant=biases,
    )
    return StructuralBlock(spec, "replace")


def forward_blocks(layout: Layout, copies: int) -> dict[str, StructuralBlock]:
    """Return the blocks of a linear layer's forward pass, by name.

    Without bias the bias heads go; with one, column tiles that do not hold it use the module without.
    """
    blocks = {forward_name(bias=False): forward_block(layout, bias=False)}
    if copies:
        blocks[forward_name(bias=True)] = forward_block(layout, bias=True)
    return blocks


def forward_name(bias: bool) -> str:
    """Return the name of the linear-forward block with or without bias heads."""
    if bias:
        return "linear_forward_bias"
    return "linear_forward"


def forward_tiles(run: LiteralRun, weights: PrefixTiles, copies: int, x: Tiles) -> Tiles:
    """Return the tiles of y: row tiles are concatenated, column tiles added (Appendix I).

    The bias sits in the first `copies` column tiles. Every tile's prefixes are put back into `weights`.
    """
    y: Tiles = []
    for row in weights.rows:
        products: Tiles = []
        for c, tile in enumerate(row):
            e = run.apply(forward_name(bias=c < copies), run.embed([x[c]], tile))
            row[c] = run.prefix(e)
            products.append(run.slot(e))
        y.append(sum(products[1:], products[0]))
    return y


@register("sim.linear_forward")
@dataclass(eq=False, kw_only=True)
class LinearForward(SimOp):
    """(W, x) -> y. `tiles` (added by planning): row and column tiles."""

    SHARES_INPUT: ClassVar[bool] = True

    tiles: tuple[int, int] = (0, 0)

    def verify(self) -> None:
        self.expect(len(self.operands) == 2, "takes weights and x")
        check_linear(self, self.operands[0], self.result, self.operands[1])

    def interpret(self, run: Interpretation, w: Weights, x: Tensor) -> Tensor:
        assert w.weight is not None
        return affine(x, w.weight, w.bias)

    def fused(self, run: FusedRun, w: FusedWeights, x: Tensor) -> Tensor:
        return apply_linear(run, w, x, self.operands[1], run.shared(self, x))

    def with_tiles(self, layout: Layout) -> LinearForward:
        return replace(self, tiles=weight_tiles(layout, self.operands[0]))

    def weight_operand(self) -> Value:
        return self.operands[0]

    def multiply_adds(self, costs: CostModel, w: Value, x: Value) -> int:
        """Count the products; scores ``x X^T`` are computed once for all layers that share both inputs."""
        n = costs.lengths[self]
        dout, din = w.type.dims
        total = n * dout * din
        for update in costs.updates(w):
            total += n * update.train * (dout + din * costs.first_scores(x, update, n))
        return total

    def scratch(self, costs: CostModel, itemsize: int) -> int:
        return itemsize * costs.lengths[self] * costs.sizes.last_train_end

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        copies = copies_of_bias(self.operands[0].type)
        blocks = forward_blocks(layout, copies)
        if copies >= self.tiles[1]:
            del blocks["linear_forward"]
        return blocks

    def scores(self, layout: Layout, run: Interpretation, w: Weights, x: Tensor) -> Iterable[Tensor]:
        assert w.weight is not None
        return forward_scores(layout, w.weight, x)

    def literal(self, run: LiteralRun, w: PrefixTiles, x: Tiles) -> Tiles:
        return forward_tiles(run, w, copies_of_bias(self.operands[0].type), x)

    def table_count(self, layout: Layout) -> TableCount:
        """Count one attention; q, k and v share one module in the table, which counts it with the value layer."""
        if self.role in ("query", "key"):
            return TableCount()
        q = attention_cost(layout)
        return TableCount(q, q, q)
