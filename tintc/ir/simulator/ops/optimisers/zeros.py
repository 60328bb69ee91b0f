"""`sim.zeros`: a second stack of prefixes for some weights, zero at the start."""

from __future__ import annotations

from dataclasses import dataclass

from tintc.ir.core import Value, register
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.interface.literal_base import ExpertTiles, LiteralRun, PrefixTiles
from tintc.ir.simulator.interface.semantics import Interpretation, Weights
from tintc.ir.simulator.shared.descent_common import parts_of
from tintc.ir.simulator.shared.sums import tiles_of


@register("sim.zeros")
@dataclass(eq=False, kw_only=True)
class Zeros(SimOp):
    """() -> sums of the weights' shape, all zero: prefixes that hold nothing yet. target: whose sums they are."""

    target: str

    def verify(self) -> None:
        self.expect(not self.operands and self.result.type.is_weights, "takes no operand and gives weights")

    def summed_weight(self) -> str:
        return self.target

    def interpret(self, run: Interpretation) -> Weights:
        kind = self.result.type
        like = run.tensors[f"rates.{self.target}"]
        zeros = {part: like.new_zeros(shape) for part, shape in parts_of(kind, ("weight", "bias")).items()}
        bias = None
        if any(part.startswith("bias") for part in kind.parts):
            bias = zeros["bias"]
        return Weights(zeros["weight"], bias)

    def fused(self, run: FusedRun) -> FusedWeights:
        """Return sums without any term."""
        return FusedWeights(None, None)

    def entries(self, costs: CostModel, result: Value) -> int:
        """Count nothing: what is zero is not held."""
        return 0

    def literal(self, run: LiteralRun) -> PrefixTiles | ExpertTiles:
        return tiles_of(self.result.type, lambda row, column: run.empty_prefix(), run.layout)
