"""`aux.logits`: forward, and the gradient of the loss, where the backward pass begins (Appendix H)."""

from __future__ import annotations

from typing import Any

from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.lowering.rules.base import Module, Rule, lowers
from tintc.lowering.rules.sweep import Sweep


@lowers(aux.Logits)
class LogitsRule(Rule[aux.Logits]):
    """Emit the loss gradient, with which the backward pass begins: logits receive no gradient from other ops."""

    def forward(self, op: aux.Logits) -> Module:
        return Module(sim.Logits, _head(op))

    def visit(self, sweep: Sweep, op: aux.Logits) -> None:
        (x,) = op.operands
        if x in sweep.wanted:
            operands, loss = (sweep.values[x],), sweep.options.loss
            sweep.receive(x, sweep.emit(sim.LossGradient, op, operands, "loss", loss=loss, **_head(op)))


def _head(op: aux.Logits) -> dict[str, Any]:
    """Return the attributes that logits and loss gradient share."""
    return {"head": op.weight, "bias": op.bias, "scale": op.scale, "softcap": op.softcap}
