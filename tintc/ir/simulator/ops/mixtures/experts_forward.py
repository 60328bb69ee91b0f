"""`sim.experts_forward`: y_e = W_e x_e + b_e for each of a token's experts (Def. D.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tintc.ir.core import Value, register
from tintc.ir.layout import Layout
from tintc.ir.routed import apply_experts, check_experts
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.interface.literal_base import ExpertTiles, LiteralRun, RoutedTiles, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation, Weights
from tintc.ir.simulator.interface.storage import TableCount, attention_cost
from tintc.ir.simulator.ops.linear_forward import forward_blocks, forward_tiles
from tintc.ir.simulator.ops.mixtures.experts_base import ExpertsOp
from tintc.ir.simulator.shared.grouped import grouped_linear
from tintc.ir.simulator.shared.linear_common import copies_of_bias
from tintc.ir.structure import StructuralBlock


@register("sim.experts_forward")
@dataclass(eq=False, kw_only=True)
class ExpertsForward(ExpertsOp):
    """(W, r, x) -> y: the linear layer of every expert, ``[B, T, E, dout]``.

    Claim: the module of `sim.linear_forward`, run once for each expert with that expert's prefixes, gives it; the
    modules of all experts share their structure. It computes y_e whether a token has chosen e or not; what has not been
    chosen meets a weight of zero. QED. It is exact.
    """

    ROUTES: ClassVar[bool] = True

    def verify(self) -> None:
        self.expect(len(self.operands) == 3, "takes weights, the routing and x")
        w, r, x = self.operands
        check_experts(self, w, r, self.result, x)

    def interpret(self, run: Interpretation, w: Weights, r: Tensor, x: Tensor) -> Tensor:
        assert w.weight is not None
        return apply_experts(w.weight, w.bias, r, x)

    def fused(self, run: FusedRun, w: FusedWeights, r: Tensor, x: Tensor) -> Tensor:
        return grouped_linear(w, self.routing(run, r, x), x)

    def multiply_adds(self, costs: CostModel, w: Value, r: Value, x: Value) -> int:
        return self.products(costs, w)

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        copies = copies_of_bias(self.operands[0].type)
        blocks = forward_blocks(layout, copies)
        if copies >= self.tiles[1]:
            del blocks["linear_forward"]
        return blocks

    def literal(self, run: LiteralRun, w: ExpertTiles, r: Tiles, x: RoutedTiles) -> RoutedTiles:
        copies = copies_of_bias(self.operands[0].type)
        return [forward_tiles(run, weights, copies, tiles) for weights, tiles in zip(w.each, x, strict=True)]

    def table_count(self, layout: Layout) -> TableCount:
        """Count one attention for each expert, as for the linear layers that they are."""
        q = self.operands[0].type.dims[0] * attention_cost(layout)
        return TableCount(q, q, q)
