"""`sim.constant`: the same vector at every token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.ir.core import register
from tintc.ir.inputs import Inputs
from tintc.ir.simulator.ops.embedding import Embedding


@register("sim.constant")
@dataclass(eq=False, kw_only=True)
class Constant(Embedding):
    """() -> the one row of ``tables.<table> [1, D]``, which every token looks up, ``[B, T, D]``."""

    def rows(self, inputs: Inputs) -> Tensor:
        return torch.zeros_like(inputs.input_ids)
