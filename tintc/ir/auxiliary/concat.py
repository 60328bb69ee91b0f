"""`aux.concat`: values side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Pulled
from tintc.ir.core import register


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
