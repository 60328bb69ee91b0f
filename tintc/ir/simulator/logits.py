"""`sim.logits`: the language-model head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.ir.auxiliary.base import affine
from tintc.ir.core import Value, register
from tintc.ir.simulator.base import Interpretation, LiteralRun, SimOp, Storage, Tiles
from tintc.ir.simulator.fused_base import FusedRun
from tintc.ir.simulator.fused_counts import FusedCounts
from tintc.ir.structure import TensorSpec


def aligned_scores(x: Tensor, head: Tensor, bias: Tensor | None) -> Tensor:
    """``x head^T + bias [n, V]`` in rows that start at multiples of 64 bytes.

    A vocabulary of odd size, such as GPT-2's, costs the product up to 40 % otherwise. Not differentiable.
    """
    vocab, unit = head.shape[0], 64 // x.element_size()
    out = x.new_empty(x.shape[0], -(-vocab // unit) * unit)[:, :vocab]
    if bias is None:
        return torch.mm(x, head.t(), out=out)
    return torch.addmm(bias, x, head.t(), out=out)


@register("sim.logits")
@dataclass(eq=False, kw_only=True)
class Logits(SimOp):
    """z = E x + b with ``tables.<head> [V, D]`` and, if named, ``tables.<bias> [V]``."""

    head: str
    bias: str = ""

    def verify(self) -> None:
        self.expect(len(self.operands) == 1 and self.result.type.kind == "logits", "maps tokens to logits")

    def stored(self, storage: Storage) -> dict[str, TensorSpec]:
        return storage.tables(self.head, self.bias)

    def multiply_adds(self, counts: FusedCounts, *operands: Value) -> int:
        return counts.lengths[self] * operands[0].type.width * counts.sizes.vocab

    def interpret(self, run: Interpretation, *operands: Tensor) -> Tensor:
        bias = run.tensors[f"tables.{self.bias}"] if self.bias else None
        return affine(operands[0], run.tensors[f"tables.{self.head}"], bias)

    def literal(self, run: LiteralRun, *operands: Tiles) -> Tensor:
        return run.logits(operands[0][0], self.head, self.bias)

    def fused(self, run: FusedRun, *operands: Tensor) -> Tensor:
        (x,), head, bias = operands, run.table(self.head), run.table(self.bias) if self.bias else None
        if torch.is_grad_enabled():
            return F.linear(x, head, bias)
        return aligned_scores(x.flatten(0, 1), head, bias).unflatten(0, x.shape[:2])
