"""`sim.add`: the sum of two values, a residual connection or two gradients that meet."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.core import register
from tintc.ir.simulator.interface.base import Interpretation, SimOp
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles, residual


@register("sim.add")
@dataclass(eq=False, kw_only=True)
class Add(SimOp):
    """(a, b) -> a + b."""

    def verify(self) -> None:
        kinds = {value.type for value in (*self.operands, self.result)}
        self.expect(len(self.operands) == 2 and len(kinds) == 1, "takes two values of one width and keeps it")

    def interpret(self, run: Interpretation, *operands: Tensor) -> Tensor:
        a, b = operands
        return a + b

    def fused(self, run: FusedRun, *operands: Tensor) -> Tensor:
        """Return the sum, written over an operand that nothing else reads, if there is one."""
        a, b = operands
        if run.frees(self, self.operands[0]):
            return a.add_(b)
        return b.add_(a) if run.frees(self, self.operands[1]) else a + b

    def literal(self, run: LiteralRun, *operands: Tiles) -> Tiles:
        return residual(*operands)
