"""`aux.norm`: forward, its derivative to first order, and the descent of the bias (Defs. F.1, F.3, F.5)."""

from __future__ import annotations

from tintc.errors import IRError
from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.core import Program, Type, Value
from tintc.lowering.options import Options
from tintc.lowering.rules.base import Layer, Module, Rule, lowers, stem
from tintc.lowering.rules.sweep import Sweep


@lowers(aux.Norm)
class NormRule(Rule[aux.Norm]):
    def forward(self, op: aux.Norm) -> Module:
        return Module(sim.NormForward, {"kind": op.kind, "eps": op.eps})

    def layer(self, program: Program, op: aux.Norm, options: Options) -> Layer | None:
        parts = ({"gain": op.weight} if op.weight else {}) | ({"bias": op.bias} if op.bias else {})
        width = op.result.type.width
        for name in parts.values():
            if program.parameters[name].shape != (width,):
                raise IRError(f"{name} has shape {program.parameters[name].shape}, the norm has width {width}.")
        return Layer(stem(op.weight or op.bias), Type("norm", (width,), tuple(parts)), parts) if parts else None

    def trains(self, op: aux.Norm) -> bool:
        return bool(op.bias)

    def backward(self, sweep: Sweep, op: aux.Norm, dy: Value) -> None:
        (x,) = op.operands
        if x in sweep.wanted:
            operands = (*sweep.weights_of(op), dy, sweep.values[x])
            sweep.receive(x, sweep.emit(sim.NormBackward, op, operands, kind=op.kind, eps=op.eps, **sweep.scheme))
        sweep.descend(sim.NormDescent, op, (dy,))
