"""Ops of the auxiliary dialect that take columns of values, or put values side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Pulled
from tintc.ir.columns import fits, put_back, take
from tintc.ir.core import register


@register("aux.select")
@dataclass(eq=False, kw_only=True)
class Select(AuxOp):
    """Columns of a value, as runs (`tintc.ir.columns`), some of which may be repeated: one part of a fused projection,
    heads in another order.

    Canonicalisation folds it into the linear layer that made the value, where it can. Runs of negative numbers are
    zeros.
    """

    columns: tuple[tuple[int, ...], ...]

    def verify(self) -> None:
        (x,) = self.operands
        self.expect(fits(self.columns, x.type.width, self.result.type.width), f"columns {self.columns} of {x.type}")

    def evaluate(self, context: Context, x: Tensor) -> Tensor:
        return take(x, self.columns)

    def pullback(self, context: Context, dy: Tensor, x: Tensor) -> Pulled:
        return (put_back(dy, self.columns, x.shape[-1]),), {}


@register("aux.concat")
@dataclass(eq=False, kw_only=True)
class Concat(AuxOp):
    """(a, b, ...) as one vector. Left by the frontend alone: `canonicalise` makes sums of linear layers of it."""

    def verify(self) -> None:
        widths = sum(value.type.width for value in self.operands)
        self.expect(widths == self.result.type.width, f"operands are {widths} wide together, not {self.result.type}")

    def evaluate(self, context: Context, *operands: Tensor) -> Tensor:
        return torch.cat(operands, -1)

    def pullback(self, context: Context, dy: Tensor, *operands: Tensor) -> Pulled:
        return dy.split([operand.shape[-1] for operand in operands], -1), {}
