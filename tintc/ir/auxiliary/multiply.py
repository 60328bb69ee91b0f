"""`aux.multiply`: a * b."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.auxiliary.base import Context
from tintc.ir.auxiliary.binary_common import Binary
from tintc.ir.core import register


@register("aux.multiply")
@dataclass(eq=False, kw_only=True)
class Multiply(Binary):
    """a * b of two values. Canonicalisation turns the product with an activation into `aux.gate`."""

    def evaluate(self, context: Context, a: Tensor, b: Tensor) -> Tensor:
        return a * b
