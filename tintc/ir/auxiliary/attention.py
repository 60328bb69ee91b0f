"""`aux.attention`: causal softmax attention over heads, with grouped keys and values and rotary positions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Pulled
from tintc.ir.core import register
from tintc.ir.functions import attention_probabilities, causal_mask, merge_heads, rotate, split_heads


@register("aux.attention")
@dataclass(eq=False, kw_only=True)
class Attention(AuxOp):
    """y = concat_h(softmax(scale * q_h k_h^T) v_h); q ``[B, T, n_heads * head_dim]``, k and v with `n_kv_heads` heads.

    inv_freq: parameter name of the rotary frequencies (empty: none), `rotary_style` half or interleaved; both q and k
    turn by their position ids. Query head h reads key/value head ``h // (n_heads // n_kv_heads)``.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float
    inv_freq: str = ""
    rotary_style: str = ""

    def verify(self) -> None:
        self.expect(len(self.operands) == 3, "takes q, k and v")
        q, k, v = (value.type.width for value in self.operands)
        heads, kv_heads = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.expect(self.n_heads % self.n_kv_heads == 0, f"{self.n_heads} heads do not share {self.n_kv_heads} evenly")
        self.expect((q, k, v) == (heads, kv_heads, kv_heads), f"widths {(q, k, v)} for {heads} and {kv_heads}")
        self.expect(self.result.type.width == heads, f"result is {self.result.type}, expected width {heads}")
        self.expect(
            bool(self.inv_freq) == (self.rotary_style in ("half", "interleaved")), "rotary style and frequencies"
        )

    def probabilities(self, context: Context, q: Tensor, k: Tensor) -> Tensor:
        def turn(heads: Tensor) -> Tensor:
            if not self.inv_freq:
                return heads
            return rotate(heads, context.inputs.position_ids, context.parameter(self.inv_freq), self.rotary_style)

        allowed = context.inputs.allowed & causal_mask(q.shape[1], q.device)
        return attention_probabilities(q, k, allowed, self.n_heads, self.n_kv_heads, self.scale, turn)

    def evaluate(self, context: Context, *operands: Tensor) -> Tensor:
        q, k, v = operands
        values = split_heads(v, self.n_kv_heads).repeat_interleave(self.n_heads // self.n_kv_heads, 1)
        return merge_heads(self.probabilities(context, q, k) @ values)

    def pullback(self, context: Context, dy: Tensor, *operands: Tensor) -> Pulled:
        """Def. E.3: the scores count as constants, so q and k get nothing; query heads of a group add up in dv."""
        q, k, _ = operands
        dv = self.probabilities(context, q, k).transpose(-1, -2) @ split_heads(dy, self.n_heads)
        dv = dv.unflatten(1, (self.n_kv_heads, -1)).sum(2)
        return (None, None, merge_heads(dv)), {}
