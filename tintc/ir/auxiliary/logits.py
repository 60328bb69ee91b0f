"""`aux.logits`: z = E x + b over the vocabulary, scaled and capped."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, affine
from tintc.ir.core import register
from tintc.ir.losses import LogitMap


@register("aux.logits")
@dataclass(eq=False, kw_only=True)
class Logits(AuxOp):
    """The language-model head: z = scale (E x + b) over the vocabulary, ``E [V, D]``, and ``c tanh(z / c)`` where a
    soft cap c is given. Never updated."""

    weight: str
    bias: str = ""
    scale: float = 1.0
    softcap: float = 0.0

    @property
    def logit_map(self) -> LogitMap:
        return LogitMap(self.scale, self.softcap)

    def verify(self) -> None:
        (x,) = self.operands
        self.expect(x.type.kind == "tokens" and self.result.type.kind == "logits", "maps tokens to logits")
        self.expect(self.softcap >= 0, f"the soft cap is {self.softcap}, it must be positive, or 0 for none")

    def evaluate(self, context: Context, x: Tensor) -> Tensor:
        scores = affine(x, context.parameter(self.weight), context.parameter(self.bias) if self.bias else None)
        return self.logit_map(scores)
