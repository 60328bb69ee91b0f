"""Mixers of tokens other than attention: forward, and the gradients of values and of what convolutions read."""

from __future__ import annotations

from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.core import Value
from tintc.lowering.rules.base import Module, Rule, lowers
from tintc.lowering.rules.sweep import Sweep
from tintc.options import Options


@lowers(aux.Recurrence)
class RecurrenceRule(Rule[aux.Recurrence]):
    """Emit the gradient of the values alone: the matrix counts as a constant."""

    def forward(self, op: aux.Recurrence) -> Module:
        return Module(sim.RecurrenceForward, op.options())

    def carriers(self, op: aux.Recurrence, options: Options) -> tuple[Value, ...]:
        """Return v, the only operand that receives a gradient."""
        return op.operands[2:3]

    def backward(self, sweep: Sweep, op: aux.Recurrence, dy: Value) -> None:
        q, k, v, g, beta = op.operands
        operands = (dy, *(sweep.values[operand] for operand in (q, k, g, beta)))
        sweep.receive(v, sweep.emit(sim.RecurrenceBackward, op, operands, gives=v.type, **op.options()))


@lowers(aux.Convolution)
class ConvolutionRule(Rule[aux.Convolution]):
    """Emit the transposed convolution of the gradient."""

    def forward(self, op: aux.Convolution) -> Module:
        return Module(sim.ConvolutionForward, {"weight": op.weight, "bias": op.bias, "padding": op.padding})

    def backward(self, sweep: Sweep, op: aux.Convolution, dy: Value) -> None:
        sweep.receive(op.operands[0], sweep.emit(sim.ConvolutionBackward, op, (dy,), weight=op.weight))


@lowers(aux.Pointwise)
class PointwiseRule(Rule[aux.Pointwise]):
    """Emit no backward pass: only matrices that count as constants are made of the result."""

    def forward(self, op: aux.Pointwise) -> Module:
        return Module(sim.Pointwise, op.options())

    def carriers(self, op: aux.Pointwise, options: Options) -> tuple[Value, ...]:
        return ()

    def backward(self, sweep: Sweep, op: aux.Pointwise, dy: Value) -> None:
        raise AssertionError("nothing hands a gradient to what a mixer's matrix is made of")
