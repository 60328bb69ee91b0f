"""`aux.select`, where no linear layer took it in: forward, and its transpose."""

from __future__ import annotations

from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.core import Value
from tintc.lowering.rules.base import Module, Rule, lowers
from tintc.lowering.rules.sweep import Sweep


@lowers(aux.Select)
class SelectRule(Rule[aux.Select]):
    """Emit the transposed selection on the gradient."""

    def forward(self, op: aux.Select) -> Module:
        return Module(sim.Select, {"columns": op.columns})

    def backward(self, sweep: Sweep, op: aux.Select, dy: Value) -> None:
        (x,) = op.operands
        sweep.receive(x, sweep.emit(sim.SelectBackward, op, (dy,), gives=x.type, columns=op.columns))
