"""`aux.add`, `aux.multiply`, `aux.select`, `aux.activation`, `aux.gate`: what acts on each token's coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Gradients
from tintc.ir.core import register
from tintc.ir.functions import ACTIVATIONS

Pulled = tuple[tuple[Tensor | None, ...], Gradients]


@dataclass(eq=False, kw_only=True)
class _Binary(AuxOp):
    def verify(self) -> None:
        self.expect(len(self.operands) == 2, f"takes two operands, not {len(self.operands)}")
        a, b = self.operands
        self.expect(a.type == b.type == self.result.type, f"types differ: {a.type}, {b.type} -> {self.result.type}")


@register("aux.add")
@dataclass(eq=False, kw_only=True)
class Add(_Binary):
    """a + b: a residual connection, or the sum of two embeddings."""

    def evaluate(self, context: Context, *operands: Tensor) -> Tensor:
        a, b = operands
        return a + b

    def pullback(self, context: Context, dy: Tensor, *operands: Tensor) -> Pulled:
        return (dy, dy), {}


@register("aux.multiply")
@dataclass(eq=False, kw_only=True)
class Multiply(_Binary):
    """a * b of two values. Canonicalisation turns the product with an activation into `aux.gate`."""

    def evaluate(self, context: Context, *operands: Tensor) -> Tensor:
        a, b = operands
        return a * b


@register("aux.select")
@dataclass(eq=False, kw_only=True)
class Select(AuxOp):
    """Columns of a value, as runs ``(start, stop)``: one part of a fused projection.

    Canonicalisation folds it into the linear layer that made the value.
    """

    columns: tuple[tuple[int, int], ...]

    def verify(self) -> None:
        (x,) = self.operands
        width = sum(stop - start for start, stop in self.columns)
        inside = all(0 <= start < stop <= x.type.width for start, stop in self.columns)
        self.expect(inside and width == self.result.type.width, f"columns {self.columns} of {x.type}")

    def evaluate(self, context: Context, *operands: Tensor) -> Tensor:
        (x,) = operands
        return torch.cat([x[..., start:stop] for start, stop in self.columns], -1)


@register("aux.activation")
@dataclass(eq=False, kw_only=True)
class Activation(AuxOp):
    """act(x), coordinate by coordinate. Pullback: first order (Def. G.3)."""

    fn: str

    def verify(self) -> None:
        (x,) = self.operands
        self.expect(self.fn in ACTIVATIONS, f"unknown activation {self.fn!r}")
        self.expect(x.type == self.result.type, f"types differ: {x.type} -> {self.result.type}")

    def evaluate(self, context: Context, *operands: Tensor) -> Tensor:
        (x,) = operands
        return ACTIVATIONS[self.fn](x)

    def pullback(self, context: Context, dy: Tensor, *operands: Tensor) -> Pulled:
        (x,) = operands
        return (context.difference.derivative(ACTIVATIONS[self.fn], x, dy),), {}


@register("aux.gate")
@dataclass(eq=False, kw_only=True)
class Gate(AuxOp):
    """g * act(u), a gated linear unit's product (J.3): operands g (``up_proj``) and u (``gate_proj``)."""

    fn: str

    def verify(self) -> None:
        self.expect(self.fn in ACTIVATIONS, f"unknown activation {self.fn!r}")
        g, u = self.operands
        self.expect(g.type == u.type == self.result.type, f"types differ: {g.type}, {u.type} -> {self.result.type}")

    def evaluate(self, context: Context, *operands: Tensor) -> Tensor:
        g, u = operands
        return g * ACTIVATIONS[self.fn](u)

    def pullback(self, context: Context, dy: Tensor, *operands: Tensor) -> Pulled:
        g, u = operands
        act = ACTIVATIONS[self.fn]
        return (dy * act(u), context.difference.derivative(act, u, dy * g)), {}
