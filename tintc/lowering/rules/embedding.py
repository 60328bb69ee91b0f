"""`aux.embedding`: forward only; nothing that descends lies below it."""

from __future__ import annotations

from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.lowering.rules.base import Module, Rule, lowers


@lowers(aux.Embedding)
class EmbeddingRule(Rule[aux.Embedding]):
    def forward(self, op: aux.Embedding) -> Module:
        return Module(sim.Embedding, {"table": op.table})
