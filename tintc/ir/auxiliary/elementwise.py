"""Ops of the auxiliary dialect that act coordinate by coordinate: sums, products, activations."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Pulled
from tintc.ir.core import register
from tintc.ir.functions import ACTIVATIONS


@dataclass(eq=False, kw_only=True)
class Binary(AuxOp):
    """Two operands of one type, which the result has too."""

    def verify(self) -> None:
        self.expect(len(self.operands) == 2, f"takes two operands, not {len(self.operands)}")
        a, b = self.operands
        self.expect(a.type == b.type == self.result.type, f"types differ: {a.type}, {b.type} -> {self.result.type}")


@register("aux.add")
@dataclass(eq=False, kw_only=True)
class Add(Binary):
    """a + b: a residual connection, or the sum of two embeddings."""

    def evaluate(self, context: Context, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def pullback(self, context: Context, dy: Tensor, a: Tensor, b: Tensor) -> Pulled:
        return (dy, dy), {}


@register("aux.multiply")
@dataclass(eq=False, kw_only=True)
class Multiply(Binary):
    """a * b of two values. Canonicalisation turns the product with an activation into `aux.gate`."""

    def evaluate(self, context: Context, a: Tensor, b: Tensor) -> Tensor:
        return a * b


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
        return (context.difference.of_activation(self.fn, x, dy),), {}


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
        return (dy * ACTIVATIONS[self.fn](u), context.difference.of_activation(self.fn, u, dy * g)), {}
