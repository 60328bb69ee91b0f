"""`sim.loss_gradient`: the gradient of the summed loss with respect to the head's input (Appendix H)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.ir.core import Value, register
from tintc.ir.functions import at_least_fp32
from tintc.ir.layout import Layout
from tintc.ir.losses import PLAIN, LogitMap, loss_gradient
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.fused_kernels import widening
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.kernels.choice import chosen, readable
from tintc.ir.simulator.ops.logits import HeadOp
from tintc.ir.simulator.shared.loss_modules import loss_blocks, loss_slot
from tintc.ir.structure import StructuralBlock
from tintc.option_facts import LOSSES

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
    total = torch.zeros(x.shape, dtype=wide, device=x.device)
    z = x.new_zeros(x.shape[0], 1, dtype=wide)
    top = z - math.inf
    for start in range(0, head.shape[0], WORDS):
        words = slice(start, start + WORDS)
        scores = logit_map(widening(x, head[words], _entries(bias, words)), overwrite=True)
        slope = None
        if logit_map.softcap:
            slope = logit_map.slope(scores)
        if kind == "ce":
            higher = torch.maximum(top, at_least_fp32(scores).amax(-1, keepdim=True))
            scores = scores.to(wide).sub_(higher).exp_()
            # The sums so far are relative to the old maximum.
            shrink = (top - higher).exp_()
            z.mul_(shrink).add_(scores.sum(-1, keepdim=True))
            total.mul_(shrink)
            top = higher
        if slope is not None:
            scores = scores.mul_(slope)
        if wide == x.dtype:
            total.addmm_(scores, head[words])
        else:
            total.add_(scores.to(x.dtype) @ head[words])
    if kind == "ce":
        total.div_(z)
    if logit_map.softcap == 0:
        return total.sub_(target).mul_(logit_map.scale).to(x.dtype)
    score = torch.linalg.vecdot(at_least_fp32(x), at_least_fp32(target))[:, None]
    if bias is not None:
        score = score + bias[next_ids][:, None]
    return total.sub_(target * logit_map.slope(logit_map(score))).to(x.dtype)


def library_gradient(
    kind: str, x: Tensor, head: Tensor, bias: Tensor | None, next_ids: Tensor, logit_map: LogitMap = PLAIN
) -> Tensor:
    """Return `loss_gradient` of ``ce`` without a soft cap for ``x [n, D]``, as torch's loss by chunks gives it."""
    scale = logit_map.scale
    if bias is not None:
        bias = bias * scale
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        loss = F.linear_cross_entropy(
            leaf * scale,
            head.detach(),
            next_ids,
            linear_bias=bias,
            reduction="sum",
            options=torch.nn.LinearCrossEntropyOptions(),
        )
        return torch.autograd.grad(loss, leaf)[0]


def _entries(bias: Tensor | None, words: slice) -> Tensor | None:
    """Return the bias of some words of the vocabulary; None without bias."""
    if bias is None:
        return None
    return bias[words]


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

    STEP_DEPENDENT: ClassVar[bool] = True

    loss: str

    def verify(self) -> None:
        super().verify()
        self.expect(self.loss in LOSSES, f"loss {self.loss!r} is none of {', '.join(LOSSES)}")
        self.expect(len(self.operands) == 1 and self.operands[0].type == self.result.type, "keeps the width")

    def interpret(self, run: Interpretation, x: Tensor) -> Tensor:
        head = run.table(self.head)
        dx = loss_gradient(self.loss, x, head, self.table_bias(run.table), run.inputs.next_ids, self.logit_map)
        return dx * run.inputs.loss_positions_of(self.step)[..., None]

    def fused(self, run: FusedRun, x: Tensor) -> Tensor:
        """Return dx, by `CHUNK` positions of the batch at a time.

        On a CPU only the positions that count are computed. On a GPU, which would have to tell the host their number,
        all are, and the others are set to zero: within the part that a step trains on they are few.
        """
        counts = run.inputs.loss_positions_of(self.step)[:, run.here(self)].flatten()
        next_ids = run.inputs.next_ids[:, run.here(self)].flatten()
        rows = x.flatten(0, 1)
        if not readable(x):
            return torch.where(counts[:, None], self._gradient(run, rows, next_ids), 0.0).view_as(x)
        chosen = counts.nonzero()[:, 0]
        gradient = self._gradient(run, rows[chosen], next_ids[chosen])
        return x.new_zeros(rows.shape).index_copy(0, chosen, gradient).view_as(x)

    def _gradient(self, run: FusedRun, rows: Tensor, next_ids: Tensor) -> Tensor:
        """Return the gradient at every one of ``rows [n, D]``, each with its target."""
        head = run.table(self.head)
        bias = self.table_bias(run.table)
        gradient = blockwise_gradient
        if torch.is_grad_enabled():
            gradient = loss_gradient
        elif self.loss == "ce" and not self.softcap and chosen("loss_gradient", rows, head):
            gradient = library_gradient
        parts = zip(rows.split(CHUNK), next_ids.split(CHUNK), strict=True)
        return torch.cat([gradient(self.loss, chunk, head, bias, ids, self.logit_map) for chunk, ids in parts])

    def multiply_adds(self, costs: CostModel, x: Value) -> int:
        if self.loss == "mse":
            return 0
        return 2 * costs.train_end(self.step) * x.type.width * costs.sizes.vocab

    def scratch(self, costs: CostModel, itemsize: int) -> int:
        batch = costs.sizes.batch
        rows = min(costs.lengths[self] * batch, CHUNK)
        entries = 2 * self.result.type.width + self._score_copies * self._words(costs)
        return -(-rows * entries * itemsize // batch)

    @property
    def _score_copies(self) -> int:
        """Return the number of tensors of scores that exist at one time: a soft cap takes two more, for its slope."""
        if self.softcap:
            return 4
        return 2

    def _words(self, costs: CostModel) -> int:
        """Return the number of vocabulary entries whose scores exist at one time."""
        if self.loss == "mse":
            return 0
        if costs.recorded:
            return costs.sizes.vocab
        return min(costs.sizes.vocab, WORDS)

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        return loss_blocks(layout, self.loss, self.head, self.bias, self.logit_map, self.result.type.width)

    def slots(self, layout: Layout) -> int:
        return 2

    def literal(self, run: LiteralRun, x: Tiles) -> Tiles:
        (tile,) = x
        return [loss_slot(run, self.loss, self.head, self.bias, self.logit_map, tile, self.step)]
