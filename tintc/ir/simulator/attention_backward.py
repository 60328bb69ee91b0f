"""`sim.attention_backward`: dv_j = sum_t a_tj dy_t, the scores taken as constants (Def. E.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tintc.ir.core import Value, register
from tintc.ir.functions import merge_heads, split_heads
from tintc.ir.layout import Layout
from tintc.ir.simulator.attention_common import AttentionOp
from tintc.ir.simulator.attention_forward import probabilities
from tintc.ir.simulator.base import Interpretation, LiteralRun, Tiles
from tintc.ir.simulator.fused_base import FusedRun
from tintc.ir.simulator.fused_counts import FusedCounts
from tintc.ir.structure import AttentionSpec, Block, chunk_map

ROWS = 512
"""Queries whose attention probabilities exist at one time in fused execution."""


@register("sim.attention_backward")
@dataclass(eq=False, kw_only=True)
class AttentionBackward(AttentionOp):
    """(dy, q, k) -> dv.

    Literally the softmax attention of the forward module, recomputed from q and k and used transposed, with slots
    [dy | q | k]: W_v brings head h of dy to TinT head h, which returns ``sum_t a_tj dy_t``; W_o adds the query heads
    that share a value head into that head's chunk.
    """

    def verify(self) -> None:
        self.expect(len(self.operands) == 3, "takes dy, q and k")
        dy, q, k = (value.type.width for value in self.operands)
        heads, kv_heads = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.expect((dy, q, k) == (heads, heads, kv_heads), f"widths {(dy, q, k)} for {heads} and {kv_heads}")
        self.expect(self.result.type.width == kv_heads, f"result is {self.result.type}, expected width {kv_heads}")

    def interpret(self, run: Interpretation, *operands: Tensor) -> Tensor:
        dy, q, k = operands
        dv = probabilities(self, run, q, k).transpose(-1, -2) @ split_heads(dy, self.n_heads)
        return merge_heads(dv.unflatten(1, (self.n_kv_heads, -1)).sum(2))

    def fused(self, run: FusedRun, *operands: Tensor) -> Tensor:
        """Probabilities are recomputed for `ROWS` queries at a time, so that no T x T tensor is kept."""
        dy, q, k = operands
        queries, keys = self.rotated(run, q, k)
        group, length = self.n_heads // self.n_kv_heads, q.shape[1]
        keys = keys.repeat_interleave(group, 1) if group > 1 else keys
        heads, mask = split_heads(dy, self.n_heads), run.allowed(length)
        dv = None
        for start in range(0, length, ROWS):
            rows, seen = slice(start, min(start + ROWS, length)), slice(0, min(start + ROWS, length))
            scores = (queries[:, :, rows] * self.scale) @ keys[:, :, seen].transpose(-1, -2)
            if mask is None:
                scores[..., start:].add_(run.later(rows.stop - start))
                weights = scores.softmax(-1)
            else:
                weights = scores.masked_fill(~mask[..., rows, seen], -math.inf).softmax(-1).nan_to_num(0.0)
            part = weights.transpose(-1, -2) @ heads[:, :, rows]
            part = F.pad(part, (0, 0, 0, length - seen.stop)) if seen.stop < length else part
            dv = part if dv is None else dv + part
        assert dv is not None
        return merge_heads(dv if group == 1 else dv.unflatten(1, (self.n_kv_heads, -1)).sum(2))

    def multiply_adds(self, counts: FusedCounts, *operands: Value) -> int:
        """Blocks of `ROWS` queries see every key up to the block's last."""
        n = counts.lengths[self]
        seen = sum((min(start + ROWS, n) - start) * min(start + ROWS, n) for start in range(0, n, ROWS))
        return 2 * seen * self.n_heads * self.head_dim

    def scratch(self, counts: FusedCounts, itemsize: int) -> int:
        n = counts.lengths[self]
        return 2 * itemsize * self.n_heads * min(n, ROWS) * n

    def structure(self, layout: Layout) -> dict[str, Block]:
        dy, q, k = self.starts(layout)
        chunks, group = self.chunks(layout), self.n_heads // self.n_kv_heads
        spec = AttentionSpec(
            n_heads=chunks,
            width=self.head_dim,
            kind="softmax",
            w_q=(self.take(layout, q, grouped=False, factor=self.scale),),
            w_k=(self.take_keys(layout, k),),
            w_v=(self.take(layout, dy, grouped=False),),
            w_o=(chunk_map(chunks, self.head_dim, {(h // group, h): 1.0 for h in range(self.n_heads)}),),
            transpose=True,
            rotary=self.inv_freq,
            rotary_style=self.rotary_style,
        )
        return {self.block_name("attention_backward"): Block(spec, "replace")}

    def literal(self, run: LiteralRun, *operands: Tiles) -> Tiles:
        dy, q, k = operands
        e = run.apply(self.block_name("attention_backward"), run.embed([*dy, *q, *k]), mask=run.token_mask())
        return [run.slot(e, i) for i in range(run.layout.tiles(self.result.type.width))]
