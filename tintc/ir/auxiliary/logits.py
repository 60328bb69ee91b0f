"""`aux.logits`: z = E x + b over the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, affine
from tintc.ir.core import register


@register("aux.logits")
@dataclass(eq=False, kw_only=True)
class Logits(AuxOp):
    """The language-model head: z = E x + b over the vocabulary, ``E [V, D]``. Never updated."""

    weight: str
    bias: str = ""

    def verify(self) -> None:
        (x,) = self.operands
        self.expect(x.type.kind == "tokens" and self.result.type.kind == "logits", "maps tokens to logits")

    def evaluate(self, context: Context, *operands: Tensor) -> Tensor:
        (x,) = operands
        return affine(x, context.parameter(self.weight), context.parameter(self.bias) if self.bias else None)
