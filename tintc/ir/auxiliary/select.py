"""`aux.select`: some columns of a value."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Pulled
from tintc.ir.columns import fits, put_back, take
from tintc.ir.core import register


@register("aux.select")
@dataclass(eq=False, kw_only=True)
class Select(AuxOp):
    """Columns of a value, as runs ``(start, stop)``: one part of a fused projection, heads in another order.

    Canonicalisation folds it into the linear layer that made the value, where it can. Runs of negative numbers are
    zeros.
    """

    columns: tuple[tuple[int, int], ...]

    def verify(self) -> None:
        (x,) = self.operands
        self.expect(fits(self.columns, x.type.width, self.result.type.width), f"columns {self.columns} of {x.type}")

    def evaluate(self, context: Context, x: Tensor) -> Tensor:
        return take(x, self.columns)

    def pullback(self, context: Context, dy: Tensor, x: Tensor) -> Pulled:
        return (put_back(dy, self.columns, x.shape[-1]),), {}
