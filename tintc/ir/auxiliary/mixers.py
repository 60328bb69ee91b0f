"""Mixers of tokens other than attention: recurrences that are linear in their values, and short causal convolutions.

As with attention, what the mixing is made of (queries, keys, decays, strengths) counts as a constant of the backward
pass; values, and what a convolution reads, receive their gradients (construction.md, section 16).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Pulled
from tintc.ir.convolution import apply_convolution, apply_transposed_convolution
from tintc.ir.core import register, tokens
from tintc.ir.functions import merge_heads, split_heads
from tintc.ir.pointwise import PointwiseOptions, apply_pointwise
from tintc.ir.recurrence import recurrence_matrix
from tintc.ir.recurrence.heads import Heads, RecurrenceOptions


@register("aux.recurrence")
@dataclass(eq=False, kw_only=True)
class Recurrence(RecurrenceOptions, AuxOp):
    """(q, k, v, g, beta) -> ``concat_h A_h v_h``; g are log decays, beta strengths, see `RecurrenceOptions`."""

    def verify(self) -> None:
        super().verify()
        self.expect(len(self.operands) == 5, "takes q, k, v, g and beta")
        found = tuple(value.type.width for value in self.operands)
        self.expect(found == self.widths(), f"q, k, v, g and beta have the widths {found}, not {self.widths()}")
        self.expect(self.result.type == tokens(self.result_width()), f"the result is {self.result.type}")

    def parameters(self) -> dict[str, str]:
        return {"skip": self.skip} if self.skip else {}

    def matrix(self, context: Context, q: Tensor, k: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        """Return A, ``[B, H, T, n T]``."""
        heads = Heads.of(self, q, k, g, beta, context.inputs.real_tokens)
        return recurrence_matrix(self, heads, context.optional(self.skip))

    def evaluate(self, context: Context, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        return merge_heads(self.matrix(context, q, k, g, beta) @ self.split_values(v))

    def pullback(
        self, context: Context, dy: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor
    ) -> Pulled:
        """Return ``dv = A^T dy``; the matrix counts as a constant."""
        dv = self.matrix(context, q, k, g, beta).transpose(-1, -2) @ split_heads(dy, self.n_heads)
        return (None, None, self.merge_values(dv), None, None), {}


@register("aux.convolution")
@dataclass(eq=False, kw_only=True)
class Convolution(AuxOp):
    """``y_tc = sum_i w_ci x_(t-i)c + b_c``: every channel on its own, over the last tokens of the text.

    weight ``[C, w]``, whose last column is of the token itself; bias ``[C]`` (empty: none); padding ``[C]``: what
    padding reads as (empty: zero). None of them descends.
    """

    weight: str
    bias: str = ""
    padding: str = ""

    def verify(self) -> None:
        (x,) = self.operands
        self.expect(x.type == self.result.type, f"types differ: {x.type} -> {self.result.type}")

    def parameters(self) -> dict[str, str]:
        names = {"weight": self.weight, "bias": self.bias, "padding": self.padding}
        return {key: name for key, name in names.items() if name}

    def evaluate(self, context: Context, x: Tensor) -> Tensor:
        bias, padding = (context.optional(name) for name in (self.bias, self.padding))
        return apply_convolution(x, context.parameter(self.weight), bias, context.inputs.real_tokens, padding)

    def pullback(self, context: Context, dy: Tensor, x: Tensor) -> Pulled:
        return (apply_transposed_convolution(dy, context.parameter(self.weight), context.inputs.real_tokens),), {}


@register("aux.pointwise")
@dataclass(eq=False, kw_only=True)
class Pointwise(PointwiseOptions, AuxOp):
    """(x) -> ``gain * fn(x + shift)``, coordinate by coordinate, for what only a mixer's matrix is made of: nothing
    back-propagates through it."""

    def parameters(self) -> dict[str, str]:
        return self.vectors()

    def evaluate(self, context: Context, x: Tensor) -> Tensor:
        return apply_pointwise(self, x, {key: context.parameter(name) for key, name in self.vectors().items()})

    def pullback(self, context: Context, dy: Tensor, x: Tensor) -> Pulled:
        return (None,), {}
