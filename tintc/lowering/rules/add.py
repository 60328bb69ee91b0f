"""`aux.add`: forward; backward hands the gradient to both."""

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
