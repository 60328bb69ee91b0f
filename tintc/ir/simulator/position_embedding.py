"""`sim.position_embedding`: table look-up by position."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.core import register
from tintc.ir.inputs import Inputs
from tintc.ir.simulator.embedding import Embedding


@register("sim.position_embedding")
@dataclass(eq=False, kw_only=True)
class PositionEmbedding(Embedding):
    """Row ``position_ids + offset`` of ``tables.<table> [P, D]``."""

    offset: int = 0

    def rows(self, inputs: Inputs) -> Tensor:
        return inputs.position_ids + self.offset
