"""`sim.attention_backward`: dv_j = sum_t a_tj dy_t, the scores taken as constants (Def. E.3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.ir.block_specs import AttentionSpec
from tintc.ir.core import Value, register
from tintc.ir.functions import merge_heads, split_heads
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.kernels.choice import chosen
from tintc.ir.simulator.shared.attention_common import ROWS, AttentionOp
from tintc.ir.structure import StructuralBlock


def seen_pairs(length: int) -> int:
    """Return the number of (query, key) pairs in blocks of `ROWS` queries with every key up to the block's last."""
    starts = range(0, length, ROWS)
    return sum((min(start + ROWS, length) - start) * min(start + ROWS, length) for start in starts)


def values_block(op: AttentionOp, layout: Layout, starts: Sequence[int]) -> StructuralBlock:
    """Return the attention that makes dv (`AttentionBackward.structure`). starts: the first chunks of dy, q and k."""
    dy, q, k = starts
    spec = AttentionSpec(
        n_heads=op.chunks(layout),
        width=op.width,
        kind="softmax",
        w_q=op.take(layout, q, op.head_dim, grouped=False, factor=op.scale),
        w_k=op.take_keys(layout, k),
        w_v=op.take(layout, dy, op.value_width, grouped=False),
        w_o=op.give(layout, grouped=True, dim=op.value_width),
        transpose=True,
        **op.spec_options(),
    )
    return StructuralBlock(spec, "replace")


@register("sim.attention_backward")
@dataclass(eq=False, kw_only=True)
class AttentionBackward(AttentionOp):
    """(dy, q, k) -> dv. Literally the forward module's attention, computed again from q and k and used transposed, see
    `structure`."""

    def verify(self) -> None:
        super().verify()
        self.expect(len(self.operands) == 3, "takes dy, q and k")
        dy, q, k = (value.type.width for value in self.operands)
        wanted = (self.n_heads * self.value_width, self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim)
        self.expect((dy, q, k) == wanted, f"dy, q and k have the widths {(dy, q, k)}, not {wanted}")
        self.expect(self.result.type.width == self.n_kv_heads * self.value_width, f"the result is {self.result.type}")

    def interpret(self, run: Interpretation, dy: Tensor, q: Tensor, k: Tensor) -> Tensor:
        dv = self.probabilities(run, q, k).transpose(-1, -2) @ split_heads(dy, self.n_heads)
        return merge_heads(self.by_key_head(dv))

    def fused(self, run: FusedRun, dy: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if chosen("attention_backward", dy, q, k):
            return merge_heads(self._by_kernel(run, dy, q, k))
        dv = reduce(torch.add, self._products(run, dy, q, k))
        return merge_heads(self.by_key_head(dv))

    def _by_kernel(self, run: FusedRun, dy: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Return dv by key/value head ``[B, n_kv_heads, m, d]``."""
        from tintc.ir.simulator.kernels.triton_attention import Scores, values_gradient

        length = k.shape[1]
        slopes = sinks = positions = None
        if self.slopes:
            slopes = torch.stack([torch.full((), slope, device=q.device) for slope in self.slopes])
            positions = run.inputs.position_ids[:, :length]
        if self.sinks:
            sinks = run.score_vector(self.sinks)
        mask = run.allowed(q.shape[1], length, self.window)
        options = Scores(self.scale, self.soft_cap, mask, slopes, positions, sinks)
        return values_gradient(*self.rotated(run, q, k), split_heads(dy, self.n_heads), options)

    def _products(self, run: FusedRun, dy: Tensor, q: Tensor, k: Tensor) -> Iterator[Tensor]:
        """Yield the terms of dv by query head, ``[B, n_heads, m, d]``, of `ROWS` queries at a time."""
        heads = split_heads(dy, self.n_heads)
        length = k.shape[1]
        for rows, stop, weights in self.weights_by_rows(run, *self.rotated(run, q, k)):
            product = weights.transpose(-1, -2) @ heads[:, :, rows]
            if stop < length:
                # Keys after the block's last query have seen none of its gradients.
                product = F.pad(product, (0, 0, 0, length - stop))
            yield product

    def multiply_adds(self, costs: CostModel, dy: Value, q: Value, k: Value) -> int:
        """Count blocks of `ROWS` queries with every key up to the block's last."""
        return seen_pairs(costs.lengths[self]) * self.n_heads * (self.head_dim + self.value_width)

    def scratch(self, costs: CostModel, itemsize: int) -> int:
        return self.score_copies * itemsize * self.n_heads * self.score_entries(costs.lengths[self])

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        """Return the module's attention, over the slots [dy | q | k].

        Claim: value head m of token j becomes ``sum_h sum_t a^h_tj dy^h_t`` over the query heads h that read m, which
        is the gradient with respect to v where the scores are constants.

        TinT head h < n_heads: W_q, W_k, the options of the scores and the mask are the forward module's, and so are the
        scores a^h. W_v brings head h of dy. `transpose` uses the scores transposed, after the softmax: at token j the
        head returns ``sum_t a^h_tj dy^h_t``. W_o adds the heads of a group into value head m (`give`). Forward,
        ``y^h_t = sum_j a^h_tj v_j`` is linear in v, so that this is the gradient of ``sum_t <dy_t, y_t>``. QED.

        Dropped are the gradients of q and k, through the scores. For e-hard heads (each position gives at least 1 - e
        to one token) the gradients of a position's scores add up to at most ``4 e |dy_t| max|v|``, so every entry of
        what is dropped is O(e) (Theorem E.5; construction.md, section 4.3; tests/theorems/test_hard_attention.py).
        """
        return {self.block_name("attention_backward"): values_block(self, layout, self.starts(layout))}

    def literal(self, run: LiteralRun, dy: Tiles, q: Tiles, k: Tiles) -> Tiles:
        e = run.apply(self.block_name("attention_backward"), run.embed([*dy, *q, *k]), mask=run.token_mask(self.window))
        return [run.slot(e, i) for i in range(run.layout.tiles(self.result.type.width))]
