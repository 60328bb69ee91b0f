"""`sim.position_embedding`: table look-up by position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tintc.ir.core import register
from tintc.ir.inputs import Inputs, check_positions
from tintc.ir.simulator.ops.embedding import Embedding


@register("sim.position_embedding")
@dataclass(eq=False, kw_only=True)
class PositionEmbedding(Embedding):
    """() -> row ``position_ids + offset`` of ``tables.<table> [P, D]``, ``[B, T, D]``.

    The claim is that of `Embedding`, with positions in place of tokens.
    """

    offset: int = 0

    def check(self, inputs: Inputs, stored: Callable[[str], Tensor]) -> None:
        check_positions(inputs.position_ids, stored(f"tables.{self.table}").shape[0] - self.offset)

    def rows(self, inputs: Inputs) -> Tensor:
        return inputs.position_ids + self.offset
