"""`sim.attention_forward`: y_h = softmax(scale q_h k_h^T) v_h (Def. E.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tintc.ir.core import Value, register
from tintc.ir.functions import attention_probabilities, causal_mask, merge_heads, rotate, split_heads
from tintc.ir.layout import Layout
from tintc.ir.simulator.attention_common import AttentionOp
from tintc.ir.simulator.base import Interpretation, LiteralRun, TableCount, Tiles, attention_cost
from tintc.ir.simulator.fused_base import FusedRun
from tintc.ir.simulator.fused_counts import FusedCounts
from tintc.ir.structure import AttentionSpec, Block, chunk_map


def probabilities(op: AttentionOp, run: Interpretation, q: Tensor, k: Tensor) -> Tensor:
    """Attention probabilities ``[B, n_heads, T, T]`` of an attention op, by the definition."""

    def turn(heads: Tensor) -> Tensor:
        if not op.inv_freq:
            return heads
        return rotate(heads, run.inputs.position_ids, run.tensors[f"rotary.{op.inv_freq}"], op.rotary_style)

    allowed = run.inputs.allowed & causal_mask(q.shape[1], q.device)
    return attention_probabilities(q, k, allowed, op.n_heads, op.n_kv_heads, op.scale, turn)


@register("sim.attention_forward")
@dataclass(eq=False, kw_only=True)
class AttentionForward(AttentionOp):
    """(q, k, v) -> y.

    Literally one TinT softmax attention with slots [q | k | v]: W_q brings head h of q (times the scale) to TinT head
    h, W_k and W_v the key/value head it reads; the mask lets tokens see earlier tokens and hides the prefixes; W_o
    keeps the used heads, so that y lands in the first chunks. Heads that are not used have q = k = v = 0 and give 0.
    """

    def verify(self) -> None:
        self.expect(len(self.operands) == 3, "takes q, k and v")
        q, k, v = (value.type.width for value in self.operands)
        heads, kv_heads = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.expect((q, k, v) == (heads, kv_heads, kv_heads), f"widths {(q, k, v)} for {heads} and {kv_heads}")
        self.expect(self.result.type.width == heads, f"result is {self.result.type}, expected width {heads}")

    def interpret(self, run: Interpretation, *operands: Tensor) -> Tensor:
        q, k, v = operands
        values = split_heads(v, self.n_kv_heads).repeat_interleave(self.n_heads // self.n_kv_heads, 1)
        return merge_heads(probabilities(self, run, q, k) @ values)

    def fused(self, run: FusedRun, *operands: Tensor) -> Tensor:
        q, k, v = operands
        queries, keys = self.rotated(run, q, k)
        values, mask = split_heads(v, self.n_kv_heads), run.allowed(q.shape[1])
        grouped = self.n_kv_heads != self.n_heads
        y = F.scaled_dot_product_attention(
            queries, keys, values, mask, is_causal=mask is None, scale=self.scale, enable_gqa=grouped
        )
        return merge_heads(y)

    def multiply_adds(self, counts: FusedCounts, *operands: Value) -> int:
        """Every query sees the keys up to its own."""
        n = counts.lengths[self]
        return n * (n + 1) * self.n_heads * self.head_dim

    def structure(self, layout: Layout) -> dict[str, Block]:
        q, k, v = self.starts(layout)
        chunks = self.chunks(layout)
        spec = AttentionSpec(
            n_heads=chunks,
            width=self.head_dim,
            kind="softmax",
            w_q=(self.take(layout, q, grouped=False, factor=self.scale),),
            w_k=(self.take_keys(layout, k),),
            w_v=(self.take(layout, v, grouped=True),),
            w_o=(chunk_map(chunks, self.head_dim, {(h, h): 1.0 for h in range(self.n_heads)}),),
            rotary=self.inv_freq,
            rotary_style=self.rotary_style,
        )
        return {self.block_name("attention_forward"): Block(spec, "replace")}

    def literal(self, run: LiteralRun, *operands: Tiles) -> Tiles:
        q, k, v = operands
        e = run.apply(self.block_name("attention_forward"), run.embed([*q, *k, *v]), mask=run.token_mask())
        return [run.slot(e, i) for i in range(len(q))]

    def table_count(self, layout: Layout) -> TableCount:
        q = attention_cost(layout)
        return TableCount(q, q, q)
