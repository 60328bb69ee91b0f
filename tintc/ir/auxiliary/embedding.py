"""`aux.embedding`: table look-up by token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Pulled
from tintc.ir.core import register


@register("aux.embedding")
@dataclass(eq=False, kw_only=True)
class Embedding(AuxOp):
    """Row `input_ids` of `table [V, D]`. Never updated."""

    table: str

    def verify(self) -> None:
        self.expect(not self.operands and self.result.type.kind == "tokens", "takes no operand and gives tokens")

    def evaluate(self, context: Context) -> Tensor:
        return context.parameter(self.table)[context.inputs.input_ids]

    def pullback(self, context: Context, dy: Tensor) -> Pulled:
        return (), {}
