"""`aux.attention`: forward, and the gradients of the values (Defs. E.1, E.3), or of queries and keys too."""

from __future__ import annotations

from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.core import Value
from tintc.lowering.rules.base import Module, Rule, lowers
from tintc.lowering.rules.sweep import Sweep
from tintc.options import Options


@lowers(aux.Attention)
class AttentionRule(Rule[aux.Attention]):
    """Emit the gradient of the values alone, the scores being constants (Def. E.3); the full gradient has those of
    queries and keys beside it."""

    def forward(self, op: aux.Attention) -> Module:
        return Module(sim.AttentionForward, op.options())

    def carriers(self, op: aux.Attention, options: Options) -> tuple[Value, ...]:
        """Return v, the only operand that receives a gradient, or all three."""
        if options.gradient == "full":
            return op.operands
        return op.operands[2:]

    def backward(self, sweep: Sweep, op: aux.Attention, dy: Value) -> None:
        q, k, v = op.operands
        if sweep.wanted.intersection((q, k)) and sweep.options.gradient == "full":
            self._all(sweep, op, dy)
            return
        operands = (dy, sweep.values[q], sweep.values[k])
        sweep.receive(v, sweep.emit(sim.AttentionBackward, op, operands, gives=v.type, **op.options()))

    def _all(self, sweep: Sweep, op: aux.Attention, dy: Value) -> None:
        """Emit the gradients of queries, keys and values."""
        operands = (dy, *(sweep.values[operand] for operand in op.operands))
        kinds = tuple(operand.type for operand in op.operands)
        options = op.options() | sweep.difference()
        gradients = sweep.emit_many(sim.AttentionFullBackward, op, operands, kinds, **options)
        for operand, gradient in zip(op.operands, gradients, strict=True):
            sweep.receive(operand, gradient)
