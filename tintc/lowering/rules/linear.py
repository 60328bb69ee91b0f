"""`aux.linear`: forward, dx = W^T dy, and the descent of weight and bias (Defs. D.1 to D.3)."""

from __future__ import annotations

from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.core import Program, Type, Value
from tintc.lowering.rules.base import Layer, Module, Rule, lowers, stem
from tintc.lowering.rules.sweep import Sweep
from tintc.options import Options


@lowers(aux.Linear)
class LinearRule(Rule[aux.Linear]):
    """Emit dx where it is wanted, and the descent of weight and bias."""

    def forward(self, op: aux.Linear) -> Module:
        return Module(sim.LinearForward, {})

    def layer(self, program: Program, op: aux.Linear, options: Options) -> Layer:
        """Return the layer's weights.

        The authors' code cuts a layer that is m widths wide into m tiles, each with its own bias (construction.md,
        section 10).
        """
        exact = options.semantics == "exact"
        copies = 1 if exact else -(-op.operands[0].type.width // program.attributes["width"])
        bias = (f"bias{copies}" if copies > 1 else "bias",) if op.bias else ()
        parts = {"weight": op.weight} | ({"bias": op.bias} if op.bias else {})
        return Layer(stem(op.weight), Type("linear", program.parameters[op.weight].shape, bias), parts)

    def backward(self, sweep: Sweep, op: aux.Linear, dy: Value) -> None:
        (x,) = op.operands
        if x in sweep.wanted:
            sweep.receive(x, sweep.emit(sim.LinearBackward, op, (*sweep.weights_of(op), dy), gives=x.type))
        sweep.descend(sim.LinearDescent, op, (dy, sweep.values[x]))
