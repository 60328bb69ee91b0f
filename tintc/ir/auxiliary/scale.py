"""`aux.scale`: a value times a number."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Pulled
from tintc.ir.core import register


@register("aux.scale")
@dataclass(eq=False, kw_only=True)
class Scale(AuxOp):
    """factor * x: an embedding's scale, a residual multiplier."""

    factor: float

    def verify(self) -> None:
        (x,) = self.operands
        self.expect(x.type == self.result.type, f"types differ: {x.type} -> {self.result.type}")

    def evaluate(self, context: Context, x: Tensor) -> Tensor:
        return self.factor * x

    def pullback(self, context: Context, dy: Tensor, x: Tensor) -> Pulled:
        return (self.factor * dy,), {}
