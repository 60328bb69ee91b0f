"""Table look-ups: forward only, since they do not descend and nothing that descends lies below them."""

from __future__ import annotations

from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.lowering.rules.base import Module, Rule, lowers


@lowers(aux.Embedding)
class EmbeddingRule(Rule[aux.Embedding]):
    """Lower token embeddings to a module that looks up rows of their table; they do not descend."""

    def forward(self, op: aux.Embedding) -> Module:
        return Module(sim.Embedding, {"table": op.table})


@lowers(aux.PositionEmbedding)
class PositionEmbeddingRule(Rule[aux.PositionEmbedding]):
    """Lower embeddings of positions to a module that looks up rows of their table; they do not descend."""

    def forward(self, op: aux.PositionEmbedding) -> Module:
        return Module(sim.PositionEmbedding, {"table": op.table, "offset": op.offset})


@lowers(aux.Constant)
class ConstantRule(Rule[aux.Constant]):
    """Lower a vector that every token has to a module that holds it; it does not descend."""

    def forward(self, op: aux.Constant) -> Module:
        return Module(sim.Constant, {"table": op.table})
