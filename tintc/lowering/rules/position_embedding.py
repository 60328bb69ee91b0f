"""`aux.position_embedding`: forward only; nothing that descends lies below it."""

from __future__ import annotations

from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.lowering.rules.base import Module, Rule, lowers


@lowers(aux.PositionEmbedding)
class PositionEmbeddingRule(Rule[aux.PositionEmbedding]):
    def forward(self, op: aux.PositionEmbedding) -> Module:
        return Module(sim.PositionEmbedding, {"table": op.table, "offset": op.offset})
