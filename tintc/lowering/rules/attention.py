"""`aux.attention`: forward, and the gradient of the values (Defs. E.1, E.3)."""

from __future__ import annotations

from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.core import Value
from tintc.lowering.rules.base import Module, Rule, lowers
from tintc.lowering.rules.sweep import Sweep


@lowers(aux.Attention)
class AttentionRule(Rule[aux.Attention]):
    """Emit the gradient of the values alone: the scores count as constants (Def. E.3)."""

    def forward(self, op: aux.Attention) -> Module:
        return Module(sim.AttentionForward, op.options())

    def carriers(self, op: aux.Attention) -> tuple[Value, ...]:
        """Return v, the only operand that receives a gradient."""
        return op.operands[2:]

    def backward(self, sweep: Sweep, op: aux.Attention, dy: Value) -> None:
        q, k, v = op.operands
        operands = (dy, sweep.values[q], sweep.values[k])
        sweep.receive(v, sweep.emit(sim.AttentionBackward, op, operands, gives=v.type, **op.options()))
