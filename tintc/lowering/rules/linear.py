"""Linear layers (Defs. D.1 to D.3), and the head, where the backward pass begins (Appendix H)."""

from __future__ import annotations

from typing import Any

from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.core import Program, Type, Value
from tintc.lowering.rules.base import Module, Rule, lowers, stem
from tintc.lowering.rules.sweep import Sweep, WeightGroup
from tintc.options import Options


@lowers(aux.Linear)
class LinearRule(Rule[aux.Linear]):
    """Emit dx where it is wanted, and the descent of weight and bias."""

    def forward(self, op: aux.Linear) -> Module:
        return Module(sim.LinearForward, {})

    def layer(self, program: Program, op: aux.Linear, options: Options) -> WeightGroup:
        """Return the layer's weights.

        The authors' code cuts a layer that is m widths wide into m tiles, each with its own bias (construction.md,
        section 10).
        """
        exact = options.semantics == "exact"
        copies = 1 if exact else -(-op.operands[0].type.width // program.attributes["width"])
        bias = (f"bias{copies}" if copies > 1 else "bias",) if op.bias else ()
        parts = {"weight": op.weight} | ({"bias": op.bias} if op.bias else {})
        return WeightGroup(stem(op.weight), Type("linear", program.parameters[op.weight].shape, bias), parts)

    def backward(self, sweep: Sweep, op: aux.Linear, dy: Value) -> None:
        (x,) = op.operands
        if x in sweep.wanted:
            sweep.receive(x, sweep.emit(sim.LinearBackward, op, (*sweep.weights_of(op), dy), gives=x.type))
        sweep.descend(sim.LinearDescent, op, (dy, sweep.values[x]))


@lowers(aux.Logits)
class LogitsRule(Rule[aux.Logits]):
    """Emit the loss gradient, with which the backward pass begins: logits receive no gradient from other ops."""

    def forward(self, op: aux.Logits) -> Module:
        return Module(sim.Logits, _head(op))

    def visit(self, sweep: Sweep, op: aux.Logits) -> None:
        (x,) = op.operands
        if x in sweep.wanted:
            operands = (sweep.values[x],)
            loss = sweep.options.loss
            sweep.receive(x, sweep.emit(sim.LossGradient, op, operands, "loss", loss=loss, **_head(op)))


def _head(op: aux.Logits) -> dict[str, Any]:
    """Return the attributes that logits and loss gradient share."""
    return {"head": op.weight, "bias": op.bias, "scale": op.scale, "softcap": op.softcap}
