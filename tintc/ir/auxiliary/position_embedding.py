"""`aux.position_embedding`: table look-up by position."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.auxiliary.base import Context
from tintc.ir.auxiliary.embedding import Embedding
from tintc.ir.core import register


@register("aux.position_embedding")
@dataclass(eq=False, kw_only=True)
class PositionEmbedding(Embedding):
    """Row `position_ids + offset` of `table [P, D]`. Never updated."""

    offset: int = 0

    def evaluate(self, context: Context) -> Tensor:
        return context.parameter(self.table)[context.inputs.position_ids + self.offset]
