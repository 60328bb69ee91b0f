"""Ops that act coordinate by coordinate, and columns that no linear layer took in: forward, and their gradients."""

from __future__ import annotations

from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.core import Value
from tintc.lowering.rules.base import Module, Rule, lowers
from tintc.lowering.rules.sweep import Sweep


@lowers(aux.Add)
class AddRule(Rule[aux.Add]):
    """Hand the gradient of a sum to both operands; nothing is emitted."""

    def forward(self, op: aux.Add) -> Module:
        return Module(sim.Add, {})

    def backward(self, sweep: Sweep, op: aux.Add, dy: Value) -> None:
        for operand in op.operands:
            sweep.receive(operand, dy)


@lowers(aux.Scale)
class ScaleRule(Rule[aux.Scale]):
    """Emit the same scale on the gradient."""

    def forward(self, op: aux.Scale) -> Module:
        return Module(sim.Scale, {"factor": op.factor})

    def backward(self, sweep: Sweep, op: aux.Scale, dy: Value) -> None:
        sweep.receive(op.operands[0], sweep.emit(sim.Scale, op, (dy,), factor=op.factor))


@lowers(aux.Select)
class SelectRule(Rule[aux.Select]):
    """Emit the transposed selection on the gradient."""

    def forward(self, op: aux.Select) -> Module:
        return Module(sim.Select, {"columns": op.columns})

    def backward(self, sweep: Sweep, op: aux.Select, dy: Value) -> None:
        (x,) = op.operands
        sweep.receive(x, sweep.emit(sim.SelectBackward, op, (dy,), gives=x.type, columns=op.columns))


@lowers(aux.Activation)
class ActivationRule(Rule[aux.Activation]):
    """Emit act'(x) dy, to first order."""

    def forward(self, op: aux.Activation) -> Module:
        return Module(sim.ActivationForward, {"fn": op.fn})

    def backward(self, sweep: Sweep, op: aux.Activation, dy: Value) -> None:
        (x,) = op.operands
        operands = (dy, sweep.values[x])
        sweep.receive(x, sweep.emit(sim.ActivationBackward, op, operands, fn=op.fn, **sweep.difference()))


@lowers(aux.Gate)
class GateRule(Rule[aux.Gate]):
    """Emit the gradients of both factors."""

    def forward(self, op: aux.Gate) -> Module:
        return Module(sim.GateForward, {"fn": op.fn})

    def backward(self, sweep: Sweep, op: aux.Gate, dy: Value) -> None:
        operands = (dy, *(sweep.values[operand] for operand in op.operands))
        kinds = tuple(operand.type for operand in op.operands)
        gradients = sweep.emit_many(sim.GateBackward, op, operands, kinds, fn=op.fn, **sweep.difference())
        for operand, gradient in zip(op.operands, gradients, strict=True):
            sweep.receive(operand, gradient)
