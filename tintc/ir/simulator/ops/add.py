"""`sim.add`: the sum of two values, a residual connection or two gradients that meet."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.core import register
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles, residual
from tintc.ir.simulator.interface.semantics import Interpretation


@register("sim.add")
@dataclass(eq=False, kw_only=True)
class Add(SimOp):
    """(a, b) -> a + b."""

    def verify(self) -> None:
        kinds = {value.type for value in (*self.operands, self.result)}
        self.expect(len(self.operands) == 2 and len(kinds) == 1, "takes two values of one width and keeps it")

    def interpret(self, run: Interpretation, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def fused(self, run: FusedRun, a: Tensor, b: Tensor) -> Tensor:
        """Return the sum, written over an operand that nothing else reads, if there is one."""
        if run.frees(self, self.operands[0]):
            return a.add_(b)
        if run.frees(self, self.operands[1]):
            return b.add_(a)
        return a + b

    def literal(self, run: LiteralRun, a: Tiles, b: Tiles) -> Tiles:
        return residual(a, b)
