"""`sim.kept_weights`: the weights that decay draws back to."""

from __future__ import annotations

from dataclasses import dataclass

from tintc.ir.core import Value, register
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.interface.literal_base import ExpertTiles, LiteralRun, PrefixTiles
from tintc.ir.simulator.interface.semantics import Interpretation, Weights
from tintc.ir.simulator.interface.weights import StoredWeights


@register("sim.kept_weights")
@dataclass(eq=False, kw_only=True)
class KeptWeights(SimOp):
    """() -> the weights that prefixes store, also in a run that starts from others, those of a state.

    name: whose they are. The tensors are those of `sim.weights`, which the program has as well.
    """

    name: str

    def verify(self) -> None:
        self.expect(not self.operands and self.result.type.is_weights, "takes no operand and gives weights")

    @property
    def _stored(self) -> StoredWeights:
        """Return the op whose tensors these are."""
        return StoredWeights(results=self.results, name=self.name)

    def interpret(self, run: Interpretation) -> Weights:
        return self._stored.interpret(run)

    def literal(self, run: LiteralRun) -> PrefixTiles | ExpertTiles:
        return self._stored.literal(run)

    def fused(self, run: FusedRun) -> FusedWeights:
        return self._stored.fused(run)

    def entries(self, costs: CostModel, result: Value) -> int:
        """Count nothing: the results are views of what is stored."""
        return 0
