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
