"""`sim.combine` and `sim.spread`: from the vectors of a token's experts to one vector, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tintc.ir.block_specs import ChosenSpec, LinearSpec, ProductSpec, SplitStage, TensorSpec
from tintc.ir.core import Value, register
from tintc.ir.layout import Layout
from tintc.ir.routed import check_routed, factors
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.literal_base import LiteralRun, RoutedTiles, Tiles, residual
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.interface.storage import TableCount, split_cost
from tintc.ir.simulator.shared.first_order import product
from tintc.ir.simulator.shared.matrix_stages import matrix_stages
from tintc.ir.structure import StructuralBlock, chunk_map


@dataclass(eq=False, kw_only=True)
class _Weighing(SimOp):
    """A product with the routing weights of a token's experts, or with one for each of them (`weighted` false).

    Claim: `by_expert` gives, for every expert e in turn, a slot of which every coordinate is ``r_te``.

    The weights stand in the first coordinates of their slots. ``experts_first`` copies coordinate 0 of slot 0 to all of
    its coordinates: split-wise from column 0 of chunk 0 to all columns, dimension-wise from chunk 0 to all chunks.
    ``experts_next`` moves every coordinate of a slot one place to the left, and ``experts_carry`` takes coordinate 0 of
    the next slot into the last place. After e such steps coordinate 0 holds ``r_te``. Only ones and zeros are
    multiplied, so all of it is exact. QED. The blocks are the same for any number of experts.
    """

    ROUTES: ClassVar[bool] = True

    weighted: bool

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        pitch = layout.pitch
        nexts = [(to, to + 1) for to in range(pitch - 1)]
        blocks = {
            "experts_first": StructuralBlock(LinearSpec(_first_stages(layout))),
            "experts_next": StructuralBlock(LinearSpec(matrix_stages(layout, nexts))),
            "experts_carry": StructuralBlock(LinearSpec(matrix_stages(layout, [(pitch - 1, 0)]))),
            "product_0_1": StructuralBlock(ProductSpec(0, 1)),
        }
        if not self.weighted:
            blocks["experts_chosen"] = StructuralBlock(ChosenSpec())
        return blocks

    def slots(self, layout: Layout) -> int:
        return 2

    def by_expert(self, run: LiteralRun, r: Tiles) -> Iterator[Tensor]:
        """Yield a slot ``[B, T, P]`` of each expert's weight."""
        if not self.weighted:
            r = [run.slot(run.apply("experts_chosen", run.embed([tile]))) for tile in r]
        for _ in range(self.operands[0].type.width):
            yield run.slot(run.apply("experts_first", run.embed(r[:1])))
            r = self._next(run, r)

    def _next(self, run: LiteralRun, r: Tiles) -> Tiles:
        moved = [run.slot(run.apply("experts_next", run.embed([tile]))) for tile in r]
        carried = [run.slot(run.apply("experts_carry", run.embed([tile]))) for tile in r[1:]]
        return [*residual(moved[:-1], carried), moved[-1]]

    def table_count(self, layout: Layout) -> TableCount:
        """Count a split operation each way: the table has no row for these."""
        return TableCount(split_cost(layout), split_cost(layout), 0)


def _first_stages(layout: Layout) -> tuple[SplitStage, SplitStage]:
    """Return the stages that copy coordinate 0 of slot 0 to all of its coordinates."""
    heads = layout.n_heads
    width = layout.d_h

    def columns() -> Tensor:
        weight = torch.zeros(heads, width, width, dtype=torch.float64)
        weight[0, :, 0] = 1
        return weight

    split = SplitStage("split", heads, width, TensorSpec((heads, width, width), columns))
    return split, chunk_map(heads, width, {(chunk, 0): 1.0 for chunk in range(layout.shards)})


@register("sim.spread")
@dataclass(eq=False, kw_only=True)
class Spread(_Weighing):
    """(r, x) -> ``r_te x_t`` for every expert e that token t has chosen, or x_t itself without `weighted`.

    Claim: a product of slots of what `by_expert` gives with x, tile by tile. QED. It is exact.
    """

    def verify(self) -> None:
        self.expect(len(self.operands) == 2, "takes the routing and x")
        check_routed(self, self.operands[0], self.result)
        x = self.operands[1].type
        self.expect(x.kind == "tokens" and x.width == self.result.type.width, f"spreads {x} to {self.result.type}")

    def interpret(self, run: Interpretation, r: Tensor, x: Tensor) -> Tensor:
        return factors(r, self.weighted) * x[..., None, :]

    def fused(self, run: FusedRun, r: Tensor, x: Tensor) -> Tensor:
        """Return ``[B, n, k, width]``; without weights they are k views of one vector, which only products read.

        Those of experts that stand in are not zero then: their weights are, wherever they are combined.
        """
        chosen = self.result.type.dims[1]
        if not self.weighted:
            if not torch.is_grad_enabled() and not run.frees(self, self.operands[1]):
                x = x.clone()  # another op may write over x
            return x[:, :, None].expand(-1, -1, chosen, -1)
        return run.routing(r, self.operands[0], chosen).factors(True) * x[:, :, None]

    def entries(self, costs: CostModel, result: Value) -> int:
        """Count the result; without weights it is one vector for all experts of a token."""
        if not self.weighted:
            return costs.lengths[self] * result.type.width
        return super().entries(costs, result)

    def literal(self, run: LiteralRun, r: Tiles, x: Tiles) -> RoutedTiles:
        return [[product(run, tile, weight) for tile in x] for weight in self.by_expert(run, r)]


@register("sim.combine")
@dataclass(eq=False, kw_only=True)
class Combine(_Weighing):
    """(r, y) -> ``sum_e r_te y_te``, or the plain sum over a token's experts without `weighted`.

    Claim: a product of slots of what `by_expert` gives with expert e's y, tile by tile; a residual connection adds
    them. QED. It is exact, and the transpose of `Spread`.
    """

    def verify(self) -> None:
        self.expect(len(self.operands) == 2, "takes the routing and y")
        check_routed(self, *self.operands)
        y = self.operands[1].type
        same = self.result.type.kind == "tokens" and y.width == self.result.type.width
        self.expect(same, f"combines {y} to {self.result.type}")

    def interpret(self, run: Interpretation, r: Tensor, y: Tensor) -> Tensor:
        return (factors(r, self.weighted) * y).sum(-2)

    def fused(self, run: FusedRun, r: Tensor, y: Tensor) -> Tensor:
        weights = run.routing(r, self.operands[0], y.shape[2]).factors(self.weighted)
        return (weights.transpose(-1, -2) @ y)[:, :, 0]

    def literal(self, run: LiteralRun, r: Tiles, y: RoutedTiles) -> Tiles:
        total: Tiles = []
        for weight, tiles in zip(self.by_expert(run, r), y, strict=True):
            weighed = [product(run, tile, weight) for tile in tiles]
            total = residual(total, weighed) if total else weighed
        return total
