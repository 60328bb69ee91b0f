"""`aux.scale`: forward, and the same factor on the gradient."""

from __future__ import annotations

from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.core import Value
from tintc.lowering.rules.base import Module, Rule, lowers
from tintc.lowering.rules.sweep import Sweep


@lowers(aux.Scale)
class ScaleRule(Rule[aux.Scale]):
    """Emit the same scale on the gradient."""

    def forward(self, op: aux.Scale) -> Module:
        return Module(sim.Scale, {"factor": op.factor})

    def backward(self, sweep: Sweep, op: aux.Scale, dy: Value) -> None:
        sweep.receive(op.operands[0], sweep.emit(sim.Scale, op, (dy,), factor=op.factor))
