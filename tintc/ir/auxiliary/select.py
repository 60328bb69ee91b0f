"""`aux.select`: some columns of a value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context
from tintc.ir.core import register


@register("aux.select")
@dataclass(eq=False, kw_only=True)
class Select(AuxOp):
    """Columns of a value, as runs ``(start, stop)``: one part of a fused projection.

    Canonicalisation folds it into the linear layer that made the value. Runs of negative numbers are zeros.
    """

    columns: tuple[tuple[int, int], ...]

    def verify(self) -> None:
        (x,) = self.operands
        width = sum(stop - start for start, stop in self.columns)
        inside = all(start < stop <= (x.type.width if start >= 0 else 0) for start, stop in self.columns)
        self.expect(inside and width == self.result.type.width, f"columns {self.columns} of {x.type}")

    def evaluate(self, context: Context, *operands: Tensor) -> Tensor:
        (x,) = operands
        zeros = x.new_zeros(*x.shape[:-1], 1)
        runs = [x[..., a:b] if a >= 0 else zeros.expand(*x.shape[:-1], b - a) for a, b in self.columns]
        return torch.cat(runs, -1)
