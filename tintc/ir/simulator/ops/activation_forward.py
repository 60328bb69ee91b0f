"""`sim.activation_forward`: act(x)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

from tintc.ir.block_specs import ActivationSpec
from tintc.ir.core import register
from tintc.ir.functions import ACTIVATIONS, GATES_ONLY
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.fused_kernels import activate
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.interface.storage import TableCount, split_cost
from tintc.ir.structure import StructuralBlock


@register("sim.activation_forward")
@dataclass(eq=False, kw_only=True)
class ActivationForward(SimOp):
    """(x) -> act(x): an MLP with identity weights, tile by tile.

    Claim: every slot becomes act of it, coordinate by coordinate, and act(0) = 0 keeps its pads zero, which linear
    modules rely on. An activation with another value at 0 may only be a factor (`sim.gate_forward`). QED.
    """

    fn: str

    def verify(self) -> None:
        self.expect(self.fn in ACTIVATIONS, f"unknown activation {self.fn!r}")
        self.expect(self.fn not in GATES_ONLY, f"{self.fn} does not map 0 to 0, so it can only be in a gate")
        self.expect(len(self.operands) == 1 and self.operands[0].type == self.result.type, "keeps the width")

    def interpret(self, run: Interpretation, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.fn](x)

    def fused(self, run: FusedRun, x: Tensor) -> Tensor:
        return activate(self.fn, x, run.frees(self, self.operands[0]))

    def activation_key(self) -> Hashable:
        return self.fn, self.operands[0]

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        return {f"act_{self.fn}": StructuralBlock(ActivationSpec(self.fn, (0,)))}

    def literal(self, run: LiteralRun, x: Tiles) -> Tiles:
        return [run.slot(run.apply(f"act_{self.fn}", run.embed([tile]))) for tile in x]

    def table_count(self, layout: Layout) -> TableCount:
        return TableCount(split_cost(layout), 2 * layout.d_sim * layout.n_heads, 0)
