"""`aux.activation`: forward, and its derivative to first order (Def. G.3)."""

from __future__ import annotations

from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.core import Value
from tintc.lowering.rules.base import Module, Rule, lowers
from tintc.lowering.rules.sweep import Sweep


@lowers(aux.Activation)
class ActivationRule(Rule[aux.Activation]):
    """Emit act'(x) dy, to first order."""

    def forward(self, op: aux.Activation) -> Module:
        return Module(sim.ActivationForward, {"fn": op.fn})

    def backward(self, sweep: Sweep, op: aux.Activation, dy: Value) -> None:
        (x,) = op.operands
        operands = (dy, sweep.values[x])
        sweep.receive(x, sweep.emit(sim.ActivationBackward, op, operands, fn=op.fn, **sweep.difference()))
