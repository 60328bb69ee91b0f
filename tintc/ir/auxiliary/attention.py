"""`aux.attention`: causal softmax attention over heads, with grouped keys and values and rotary positions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Pulled
from tintc.ir.core import register
from tintc.ir.functions import merge_heads, split_heads
from tintc.ir.scores import ScoreOptions, attention_probabilities


@register("aux.attention")
@dataclass(eq=False, kw_only=True)
class Attention(ScoreOptions, AuxOp):
    """y = concat_h(softmax(scale * q_h k_h^T) v_h); q is ``[B, T, n_heads * head_dim]``, k and v have `n_kv_heads`
    heads."""

    def verify(self) -> None:
        super().verify()
        self.expect(len(self.operands) == 3, "takes q, k and v")
        q, k, v = (value.type.width for value in self.operands)
        wanted = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim, self.n_kv_heads * self.value_width)
        self.expect((q, k, v) == wanted, f"q, k and v have the widths {(q, k, v)}, not {wanted}")
        self.expect(self.result.type.width == self.n_heads * self.value_width, f"the result is {self.result.type}")

    def parameters(self) -> dict[str, str]:
        return self.vectors()

    def probabilities(self, context: Context, q: Tensor, k: Tensor) -> Tensor:
        """Return the attention probabilities ``[B, n_heads, T, T]``."""
        vectors = {key: context.parameter(name) for key, name in self.vectors().items()}
        return attention_probabilities(self, q, k, context.inputs.allowed, context.inputs.position_ids, vectors)

    def evaluate(self, context: Context, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        values = split_heads(v, self.n_kv_heads).repeat_interleave(self.n_heads // self.n_kv_heads, 1)
        return merge_heads(self.probabilities(context, q, k) @ values)

    def pullback(self, context: Context, dy: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Pulled:
        """Return dv (Def. E.3).

        The scores count as constants, so q and k get nothing; query heads of a group add up in dv.
        """
        dv = self.probabilities(context, q, k).transpose(-1, -2) @ split_heads(dy, self.n_heads)
        dv = dv.unflatten(1, (self.n_kv_heads, -1)).sum(2)
        return (None, None, merge_heads(dv)), {}
