"""`aux.gate`: g * act(u)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Pulled
from tintc.ir.core import register
from tintc.ir.functions import ACTIVATIONS


@register("aux.gate")
@dataclass(eq=False, kw_only=True)
class Gate(AuxOp):
    """g * act(u), a gated linear unit's product (J.3): operands g (``up_proj``) and u (``gate_proj``)."""

    fn: str

    def verify(self) -> None:
        self.expect(self.fn in ACTIVATIONS, f"unknown activation {self.fn!r}")
        g, u = self.operands
        self.expect(g.type == u.type == self.result.type, f"types differ: {g.type}, {u.type} -> {self.result.type}")

    def evaluate(self, context: Context, g: Tensor, u: Tensor) -> Tensor:
        return g * ACTIVATIONS[self.fn](u)

    def pullback(self, context: Context, dy: Tensor, g: Tensor, u: Tensor) -> Pulled:
        act = ACTIVATIONS[self.fn]
        return (dy * act(u), context.difference.derivative(act, u, dy * g)), {}
