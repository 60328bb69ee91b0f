"""`sim.loss_gradient`: the gradient of the summed loss with respect to the head's input (Appendix H, Remark H.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.ir.core import Value, register
from tintc.ir.functions import loss_gradient
from tintc.ir.layout import Layout
from tintc.ir.simulator.base import Interpretation, LiteralRun, SimOp, Storage, Tiles
from tintc.ir.simulator.fused_base import FusedRun, aligned_scores
from tintc.ir.simulator.fused_counts import FusedCounts
from tintc.ir.structure import Block, LossSpec, TensorSpec

CHUNK = 1024
"""Positions whose scores over the vocabulary exist at one time in fused execution."""


def aligned_gradient(kind: str, x: Tensor, head: Tensor, bias: Tensor | None, next_ids: Tensor) -> Tensor:
    """As `loss_gradient`, for ``x [n, D]``, with aligned scores; not differentiable."""
    scores, rows = aligned_scores(x, head, bias)
    if kind == "ce":
        rows[:, head.shape[0] :] = -math.inf
        scores = rows.softmax(-1)[:, : head.shape[0]]
    return (scores @ head).sub_(head[next_ids])


@register("sim.loss_gradient")
@dataclass(eq=False, kw_only=True)
class LossGradient(SimOp):
    """(x) -> dx at the positions that count, 0 elsewhere. loss ``ce`` or ``quad``; `head`, `bias` as in
    `sim.logits`."""

    loss: str
    head: str
    bias: str = ""

    def verify(self) -> None:
        self.expect(self.loss in ("ce", "quad"), f"loss {self.loss!r} is neither 'ce' nor 'quad'")
        self.expect(len(self.operands) == 1 and self.operands[0].type == self.result.type, "keeps the width")

    def stored(self, storage: Storage) -> dict[str, TensorSpec]:
        return storage.tables(self.head, self.bias)

    def interpret(self, run: Interpretation, *operands: Tensor) -> Tensor:
        bias = run.tensors[f"tables.{self.bias}"] if self.bias else None
        head = run.tensors[f"tables.{self.head}"]
        dx = loss_gradient(self.loss, operands[0], head, bias, run.inputs.next_ids)
        return dx * run.inputs.counts[..., None]

    def fused(self, run: FusedRun, *operands: Tensor) -> Tensor:
        """By `CHUNK` positions of the batch at a time, and only the positions that count: ``[CHUNK, V]`` at most."""
        (x,) = operands
        length = x.shape[1]
        counts, targets = run.inputs.counts[:, :length], run.inputs.next_ids[:, :length]
        chosen = counts.flatten().nonzero()[:, 0]
        head, bias = run.table(self.head), run.table(self.bias) if self.bias else None
        rows, ids = x.flatten(0, 1)[chosen], targets.flatten()[chosen]
        gradient = loss_gradient if torch.is_grad_enabled() else aligned_gradient
        parts = [
            gradient(self.loss, part, head, bias, at)
            for part, at in zip(rows.split(CHUNK), ids.split(CHUNK), strict=True)
        ]
        return x.new_zeros(x.flatten(0, 1).shape).index_copy(0, chosen, torch.cat(parts)).view_as(x)

    def multiply_adds(self, counts: FusedCounts, *operands: Value) -> int:
        return 2 * counts.sizes.train * operands[0].type.width * counts.sizes.vocab

    def scratch(self, counts: FusedCounts, itemsize: int) -> int:
        batch, vocab = counts.sizes.batch, counts.sizes.vocab
        return -(-2 * itemsize * min(counts.lengths[self] * batch, CHUNK) * vocab // batch)

    def structure(self, layout: Layout) -> dict[str, Block]:
        return {f"loss_{self.loss}": Block(LossSpec(self.loss, self.head, self.bias), "replace")}

    def literal(self, run: LiteralRun, *operands: Tiles) -> Tiles:
        return [run.slot(run.apply(f"loss_{self.loss}", run.embed(operands[0])))]
