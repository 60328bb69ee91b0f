"""`aux.embedding` and `aux.position_embedding`: table look-ups by token and by position."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Gradients
from tintc.ir.core import register


@register("aux.embedding")
@dataclass(eq=False, kw_only=True)
class Embedding(AuxOp):
    """Row `input_ids` of `table [V, D]`. Never updated."""

    table: str

    def verify(self) -> None:
        self.expect(not self.operands and self.result.type.kind == "tokens", "takes no operand and gives tokens")

    def evaluate(self, context: Context, *operands: Tensor) -> Tensor:
        return context.parameter(self.table)[context.inputs.input_ids]

    def pullback(self, context: Context, dy: Tensor, *operands: Tensor) -> tuple[tuple[Tensor | None, ...], Gradients]:
        return (), {}


@register("aux.position_embedding")
@dataclass(eq=False, kw_only=True)
class PositionEmbedding(Embedding):
    """Row `position_ids + offset` of `table [P, D]`. Never updated."""

    offset: int = 0

    def evaluate(self, context: Context, *operands: Tensor) -> Tensor:
        return context.parameter(self.table)[context.inputs.position_ids + self.offset]
