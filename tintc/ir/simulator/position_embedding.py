"""`sim.position_embedding`: table look-up by position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tintc.errors import InputError
from tintc.ir.core import register
from tintc.ir.inputs import Inputs
from tintc.ir.simulator.embedding import Embedding


@register("sim.position_embedding")
@dataclass(eq=False, kw_only=True)
class PositionEmbedding(Embedding):
    """Row ``position_ids + offset`` of ``tables.<table> [P, D]``."""

    offset: int = 0

    def check(self, inputs: Inputs, table: Callable[[str], Tensor]) -> None:
        count = table(self.table).shape[0] - self.offset
        first, last = int(inputs.position_ids.min()), int(inputs.position_ids.max())
        if first < 0 or last >= count:
            bad = first if first < 0 else last
            raise InputError(f"Position {bad} is out of range; the model has {count} positions.")

    def rows(self, inputs: Inputs) -> Tensor:
        return inputs.position_ids + self.offset
