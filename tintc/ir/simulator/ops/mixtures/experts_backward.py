"""`sim.experts_backward`: dx_e = W_e^T dy_e for each of a token's experts (Def. D.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tintc.ir.core import Value, register
from tintc.ir.layout import Layout
from tintc.ir.routed import apply_experts_transposed, check_experts
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.interface.literal_base import ExpertTiles, LiteralRun, RoutedTiles, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation, Weights
from tintc.ir.simulator.ops.linear_backward import backward_block, backward_tiles
from tintc.ir.simulator.ops.mixtures.experts_base import ExpertsOp
from tintc.ir.simulator.shared.grouped import grouped_transposed
from tintc.ir.structure import StructuralBlock


@register("sim.experts_backward")
@dataclass(eq=False, kw_only=True)
class ExpertsBackward(ExpertsOp):
    """(W, r, dy) -> dx: every expert's own, ``[B, T, E, din]``.

    Claim: the module of `sim.linear_backward`, run once for each expert with that expert's prefixes, gives it. Where a
    token has not chosen the expert dy is zero, and so is dx. QED. It is exact.
    """

    ROUTES: ClassVar[bool] = True

    def verify(self) -> None:
        self.expect(len(self.operands) == 3, "takes weights, the routing and dy")
        w, r, dy = self.operands
        check_experts(self, w, r, dy, self.result)

    def interpret(self, run: Interpretation, w: Weights, r: Tensor, dy: Tensor) -> Tensor:
        assert w.weight is not None
        return apply_experts_transposed(w.weight, r, dy)

    def fused(self, run: FusedRun, w: FusedWeights, r: Tensor, dy: Tensor) -> Tensor:
        return grouped_transposed(w, self.routing(run, r, dy), dy)

    def multiply_adds(self, costs: CostModel, w: Value, r: Value, dy: Value) -> int:
        return self.products(costs, w)

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        return {"linear_backward": backward_block(layout)}

    def literal(self, run: LiteralRun, w: ExpertTiles, r: Tiles, dy: RoutedTiles) -> RoutedTiles:
        return [backward_tiles(run, weights, tiles) for weights, tiles in zip(w.each, dy, strict=True)]
