"""`sim.weights`: the auxiliary's weights, as prefixes store them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.core import register
from tintc.ir.simulator.base import Interpretation, LiteralRun, PrefixTiles, SimOp, Tiles, Weights
from tintc.ir.simulator.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.linear_common import copies_of_bias


@register("sim.weights")
@dataclass(eq=False, kw_only=True)
class StoredWeights(SimOp):
    """The auxiliary's weights as a value: ``prefixes.<name>``, before any update.

    Stored: ``weight [ceil(dout/S), S, din]`` (stacked rows), ``bias [dout]`` of a linear layer; ``gain [D]``,
    ``bias [D]`` of a norm. `tiles` (added by planning): row and column tiles.
    """

    name: str
    tiles: tuple[int, int] = (0, 0)

    def verify(self) -> None:
        kind = self.result.type
        self.expect(not self.operands and kind.kind in ("linear", "norm"), "takes no operand and gives weights")

    def interpret(self, run: Interpretation, *operands: Tensor) -> Weights:
        kind, prefix = self.result.type, f"prefixes.{self.name}"
        bias = run.tensors.get(f"{prefix}.bias")
        if kind.kind == "norm":
            return Weights(run.tensors.get(f"{prefix}.gain"), bias)
        stacked = run.tensors[f"{prefix}.weight"]
        return Weights(stacked.flatten(0, 1)[: kind.dims[0]], bias)

    def literal(self, run: LiteralRun, *operands: Tiles) -> PrefixTiles:
        return run.weights(self.name)

    def fused(self, run: FusedRun, *operands: Tensor) -> FusedWeights:
        """Views of what is stored; a layer's stacked rows are its matrix, up to the rows that fill the last prefix."""
        parts = run.stored(self.name)
        stacked = parts.get("weight")
        weight = parts.get("gain") if stacked is None else stacked.flatten(0, 1)[: self.result.type.dims[0]]
        return FusedWeights(weight, parts.get("bias"))

    @property
    def bias_copies(self) -> int:
        return copies_of_bias(self.result.type)
