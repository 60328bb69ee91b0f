"""`sim.loss_gradient`: the gradient of the summed loss with respect to the head's input (Appendix H)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.ir.core import Value, register
from tintc.ir.layout import Layout
from tintc.ir.losses import PLAIN, LogitMap, loss_gradient
from tintc.ir.simulator.interface.base import Interpretation
from tintc.ir.simulator.interface.fused_base import FusedRun, at_least_fp32, widening
from tintc.ir.simulator.interface.fused_counts import FusedCounts
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.ops.logits import HeadOp
from tintc.ir.simulator.shared.loss_modules import loss_blocks, loss_slot
from tintc.ir.structure import Block
from tintc.options import LOSSES

CHUNK = 1024
"""Positions whose scores exist at one time in fused execution."""
WORDS = 4096
"""Vocabulary entries whose scores exist at one time, unless autograd records the run."""


def blockwise_gradient(
    kind: str, x: Tensor, head: Tensor, bias: Tensor | None, next_ids: Tensor, logit_map: LogitMap = PLAIN
) -> Tensor:
    """Return `loss_gradient` for ``x [n, D]``, by `WORDS` of the vocabulary at a time; not differentiable.

    A softmax over blocks: with m the largest logit so far, both ``total = sum exp(z - m)`` and
    ``sum exp(z - m) dz/ds head`` are kept, and scaled by ``exp(m - m')`` when a larger logit m' is met; their quotient
    is wanted. Sums are in fp32 or better.
    """
    target = head[next_ids]
    if kind == "mse":
        return x - target
    wide = at_least_fp32(x).dtype
    total, z = torch.zeros(x.shape, dtype=wide, device=x.device), x.new_zeros(x.shape[0], 1, dtype=wide)
    top = z - math.inf
    biases = [None] * -(-head.shape[0] // WORDS) if bias is None else bias.split(WORDS)
    for block, added in zip(head.split(WORDS), biases, strict=True):
        scores = logit_map(widening(x, block, added), overwrite=True)
        slope = None if logit_map.softcap == 0 else logit_map.slope(scores)
        if kind == "ce":
            higher = torch.maximum(top, at_least_fp32(scores).amax(-1, keepdim=True))
            scores = (scores.to(wide) if scores.dtype != wide else scores).sub_(higher).exp_()
            # What was summed so far is relative to the old maximum.
            shrink = (top - higher).exp_()
            z.mul_(shrink).add_(scores.sum(-1, keepdim=True))
            total.mul_(shrink)
            top = higher
        scores = scores if slope is None else scores.mul_(slope)
        if wide == x.dtype:
            total.addmm_(scores, block)
        else:
            total.add_(scores.to(x.dtype) @ block)
    total = total.div_(z) if kind == "ce" else total
    if logit_map.softcap == 0:
        return total.sub_(target).mul_(logit_map.scale).to(x.dtype)
    score = torch.linalg.vecdot(at_least_fp32(x), at_least_fp32(target))[:, None]
    score = score if bias is None else score + bias[next_ids][:, None]
    return total.sub_(target * logit_map.slope(logit_map(score))).to(x.dtype)


@register("sim.loss_gradient")
@dataclass(eq=False, kw_only=True)
class LossGradient(HeadOp):
    """(x) -> dx at the positions that count, 0 elsewhere. loss: ``ce``, ``quad`` or ``mse``.

    Claim: with ``s = E x + b``, logits z(s) and n the next token, dx is the gradient of the summed loss. ``ce``: the
    loss ``log sum_i exp(z_i) - z_n`` has the gradient ``softmax(z) - e_n`` in z; ``quad``: ``|z - e_n|^2 / 2`` has
    ``z - e_n``. z acts entry by entry, so in s they are multiplied by dz/ds, and in x by E^T, as s is linear in x.
    ``mse``: ``|x - E_n|^2 / 2`` has ``x - E_n``. Positions are independent of each other, so the gradient of the sum
    over those that count is this at each. QED. It is exact. The literal form, a sequence of modules, stands in
    `loss_modules`.
    """

    loss: str

    def of_its_step(self) -> bool:
        return True

    def verify(self) -> None:
        super().verify()
        self.expect(self.loss in LOSSES, f"loss {self.loss!r} is none of {', '.join(LOSSES)}")
        self.expect(len(self.operands) == 1 and self.operands[0].type == self.result.type, "keeps the width")

    def interpret(self, run: Interpretation, *operands: Tensor) -> Tensor:
        bias = run.tensors[f"tables.{self.bias}"] if self.bias else None
        head = run.tensors[f"tables.{self.head}"]
        dx = loss_gradient(self.loss, operands[0], head, bias, run.inputs.next_ids, self.logit_map)
        return dx * run.inputs.counted(self.step)[..., None]

    def fused(self, run: FusedRun, *operands: Tensor) -> Tensor:
        """Return dx, by `CHUNK` positions of the batch at a time, and only for the positions that count."""
        (x,) = operands
        here = run.here(self)
        counts, targets = run.inputs.counted(self.step)[:, here], run.inputs.next_ids[:, here]
        chosen = counts.flatten().nonzero()[:, 0]
        head, bias = run.table(self.head), run.table(self.bias) if self.bias else None
        rows, ids = x.flatten(0, 1)[chosen], targets.flatten()[chosen]
        gradient = loss_gradient if torch.is_grad_enabled() else blockwise_gradient
        parts = [
            gradient(self.loss, part, head, bias, at, self.logit_map)
            for part, at in zip(rows.split(CHUNK), ids.split(CHUNK), strict=True)
        ]
        return x.new_zeros(x.flatten(0, 1).shape).index_copy(0, chosen, torch.cat(parts)).view_as(x)

    def multiply_adds(self, counts: FusedCounts, *operands: Value) -> int:
        if self.loss == "mse":
            return 0
        return 2 * counts.trained(self) * operands[0].type.width * counts.sizes.vocab

    def scratch(self, counts: FusedCounts, itemsize: int) -> int:
        batch, vocab = counts.sizes.batch, counts.sizes.vocab
        rows = min(counts.lengths[self] * batch, CHUNK)
        words = 0 if self.loss == "mse" else vocab if counts.recorded else min(vocab, WORDS)
        kept = 2 if self.softcap == 0 else 4
        return -(-rows * (kept * words + 2 * self.result.type.width) * itemsize // batch)

    def structure(self, layout: Layout) -> dict[str, Block]:
        return loss_blocks(layout, self.loss, self.head, self.bias, self.logit_map, self.result.type.width)

    def slots(self, layout: Layout) -> int:
        return 2

    def literal(self, run: LiteralRun, *operands: Tiles) -> Tiles:
        (x,) = operands[0]
        return [loss_slot(run, self.loss, self.head, self.bias, self.logit_map, x, self.step)]
