"""`aux.constant`: the same vector at every token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.ir.auxiliary.base import Context
from tintc.ir.auxiliary.embedding import Embedding
from tintc.ir.core import register


@register("aux.constant")
@dataclass(eq=False, kw_only=True)
class Constant(Embedding):
    """The one row of `table [1, D]`: a position embedding whose rows are all alike. Never updated."""

    def evaluate(self, context: Context) -> Tensor:
        return context.parameter(self.table)[torch.zeros_like(context.inputs.input_ids)]
