"""`aux.attention`: forward, and the gradient of the values (Defs. E.1, E.3)."""

from __future__ import annotations

from typing import Any

from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.core import Value
from tintc.lowering.rules.base import Module, Rule, lowers
from tintc.lowering.rules.sweep import Sweep


@lowers(aux.Attention)
class AttentionRule(Rule[aux.Attention]):
    """Emit the gradient of the values alone: the scores count as constants (Def. E.3)."""

    def forward(self, op: aux.Attention) -> Module:
        return Module(sim.AttentionForward, _heads(op))

    def carriers(self, op: aux.Attention) -> tuple[Value, ...]:
        """Return v, the only operand that receives a gradient."""
        return op.operands[2:]

    def backward(self, sweep: Sweep, op: aux.Attention, dy: Value) -> None:
        q, k, v = op.operands
        operands = (dy, sweep.values[q], sweep.values[k])
        sweep.receive(v, sweep.emit(sim.AttentionBackward, op, operands, gives=v.type, **_heads(op)))


def _heads(op: aux.Attention) -> dict[str, Any]:
    """Return the attributes that both attention modules share with the auxiliary's op."""
    names = ("n_heads", "n_kv_heads", "head_dim", "scale", "inv_freq", "rotary_style", "window", "soft_cap", "slopes")
    names += ("gain", "value_dim", "query_scale", "sinks")
    return {name: getattr(op, name) for name in names}
