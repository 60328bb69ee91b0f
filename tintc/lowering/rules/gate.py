"""`aux.gate`: forward, and the gradients of both factors (J.3)."""

from __future__ import annotations

from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.core import Value
from tintc.lowering.rules.base import Module, Rule, lowers
from tintc.lowering.rules.sweep import Sweep


@lowers(aux.Gate)
class GateRule(Rule[aux.Gate]):
    """Emit the gradients of both factors."""

    def forward(self, op: aux.Gate) -> Module:
        return Module(sim.GateForward, {"fn": op.fn})

    def backward(self, sweep: Sweep, op: aux.Gate, dy: Value) -> None:
        operands = (dy, *(sweep.values[operand] for operand in op.operands))
        kinds = tuple(operand.type for operand in op.operands)
        made = sweep.emit_many(sim.GateBackward, op, operands, kinds, fn=op.fn, **sweep.difference())
        for operand, gradient in zip(op.operands, made, strict=True):
            sweep.receive(operand, gradient)
