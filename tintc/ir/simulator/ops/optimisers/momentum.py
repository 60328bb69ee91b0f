"""`sim.momentum`: mu m, to which the next descent adds its sums."""

from __future__ import annotations

from dataclasses import dataclass

from tintc.ir.core import Value, register
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.interface.literal_base import ExpertTiles, LiteralRun, PrefixTiles
from tintc.ir.simulator.interface.semantics import Interpretation, Weights
from tintc.ir.simulator.shared.sums import each_of, like, times, times_block, times_name
from tintc.ir.structure import StructuralBlock


@register("sim.momentum")
@dataclass(eq=False, kw_only=True)
class Momentum(SimOp):
    """(m) -> factor m, of the sums of one layer's gradients. target: whose they are.

    Claim: the block `times_block` on every tile of prefixes gives it, as it multiplies whole embeddings. With m zero at
    the start, and the descent of step s adding minus its gradient g_s, step n has ``m = -sum_s factor^(n-s) g_s``,
    which is ``m <- factor m - g`` written out. QED. It is exact.
    """

    target: str
    factor: float

    def verify(self) -> None:
        alike = len(self.operands) == 1 and self.operands[0].type == self.result.type
        self.expect(alike and self.result.type.is_weights, "takes sums and gives sums of the same type")
        self.expect(0 < self.factor < 1, f"the momentum is {self.factor}; it must lie between 0 and 1")

    def summed_weight(self) -> str:
        return self.target

    def interpret(self, run: Interpretation, m: Weights) -> Weights:
        assert m.weight is not None
        bias = m.bias
        if bias is not None:
            bias = self.factor * bias
        return Weights(self.factor * m.weight, bias)

    def fused(self, run: FusedRun, m: FusedWeights) -> FusedWeights:
        return times(m, self.factor)

    def multiply_adds(self, costs: CostModel, m: Value) -> int:
        costs.pending[self.result] = costs.updates(m)
        return 0

    def entries(self, costs: CostModel, result: Value) -> int:
        """Count nothing: pending updates keep their factors and have another rate."""
        return 0

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        return times_block(layout, self.factor)

    def literal(self, run: LiteralRun, m: PrefixTiles | ExpertTiles) -> PrefixTiles | ExpertTiles:
        block = times_name(self.factor)
        each = [
            PrefixTiles([[run.prefix(run.apply(block, run.embed([], tile))) for tile in row] for row in tiles.rows])
            for tiles in each_of(m)
        ]
        return like(m, each)
