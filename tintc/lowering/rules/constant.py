"""`aux.constant`: forward only; it does not descend."""

from __future__ import annotations

from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.lowering.rules.base import Module, Rule, lowers


@lowers(aux.Constant)
class ConstantRule(Rule[aux.Constant]):
    def forward(self, op: aux.Constant) -> Module:
        return Module(sim.Constant, {"table": op.table})
