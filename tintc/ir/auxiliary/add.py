"""`aux.add`: a + b."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.auxiliary.base import Context, Pulled
from tintc.ir.auxiliary.binary_common import Binary
from tintc.ir.core import register


@register("aux.add")
@dataclass(eq=False, kw_only=True)
class Add(Binary):
    """a + b: a residual connection, or the sum of two embeddings."""

    def evaluate(self, context: Context, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def pullback(self, context: Context, dy: Tensor, a: Tensor, b: Tensor) -> Pulled:
        return (dy, dy), {}
