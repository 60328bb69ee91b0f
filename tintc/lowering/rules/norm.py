"""`aux.norm`: forward, its derivative to first order, and the descent of bias and gain (Defs. F.1, F.3, F.5)."""

from __future__ import annotations

from tintc.errors import IRError
from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.auxiliary.interpreter import descending
from tintc.ir.core import Program, Type, Value
from tintc.lowering.rules.base import Module, Rule, lowers, stem
from tintc.lowering.rules.sweep import Sweep, WeightGroup
from tintc.options import Options


@lowers(aux.Norm)
class NormRule(Rule[aux.Norm]):
    """Emit dx where it is wanted, and the descent of the parts that are updated; the gain's needs f(x), which is a norm
    without weights."""

    def forward(self, op: aux.Norm) -> Module:
        return Module(sim.NormForward, {"kind": op.kind, "eps": op.eps, "groups": op.groups})

    def layer(self, program: Program, op: aux.Norm, options: Options) -> WeightGroup | None:
        """Return the norm's gain and bias; None if it has neither.

        A gain that descends is kept as a vector, of one head if all heads share it; any other as a diagonal matrix.
        """
        parts = ({"gain": op.weight} if op.weight else {}) | ({"bias": op.bias} if op.bias else {})
        n_layers = program.attributes["n_layers"]
        width = op.result.type.width
        stepped = descending(op, n_layers, options.update_layers(n_layers), options.groups)
        shapes = {(width,)} if op.groups == 1 else {(op.groups, width // op.groups), (width // op.groups,)}
        for name in parts.values():
            if program.parameters[name].shape not in shapes:
                raise IRError(f"{name} has shape {program.parameters[name].shape}, the norm has width {width}.")
        held = tuple("vector" if part == "gain" and "weight" in stepped else part for part in parts)
        if "vector" in held and all(program.parameters[name].shape == (width // op.groups,) for name in parts.values()):
            width //= op.groups
        return WeightGroup(stem(op.weight or op.bias), Type("norm", (width,), held), parts) if parts else None

    def backward(self, sweep: Sweep, op: aux.Norm, dy: Value) -> None:
        (x,) = op.operands
        if x in sweep.wanted:
            operands = (*sweep.weights_of(op), dy, sweep.values[x])
            attributes = self.forward(op).attributes
            sweep.receive(x, sweep.emit(sim.NormBackward, op, operands, **attributes, **sweep.difference()))
        if op not in sweep.updated:
            return
        stepped = op.in_groups(sweep.options.groups)
        parts = tuple(part for part, key in (("gain", "weight"), ("bias", "bias")) if key in stepped)
        operands = (dy,)
        if "gain" in parts:
            operands = (dy, sweep.emit(sim.NormForward, op, (sweep.values[x],), **self.forward(op).attributes))
        sweep.descend(sim.NormDescent, op, operands, parts=parts)
