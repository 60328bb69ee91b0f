"""`aux.activation`: act(x)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Pulled
from tintc.ir.core import register
from tintc.ir.functions import ACTIVATIONS


@register("aux.activation")
@dataclass(eq=False, kw_only=True)
class Activation(AuxOp):
    """act(x), coordinate by coordinate. Pullback: first order (Def. G.3)."""

    fn: str

    def verify(self) -> None:
        (x,) = self.operands
        self.expect(self.fn in ACTIVATIONS, f"unknown activation {self.fn!r}")
        self.expect(x.type == self.result.type, f"types differ: {x.type} -> {self.result.type}")

    def evaluate(self, context: Context, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.fn](x)

    def pullback(self, context: Context, dy: Tensor, x: Tensor) -> Pulled:
        return (context.difference.derivative(ACTIVATIONS[self.fn], x, dy),), {}
