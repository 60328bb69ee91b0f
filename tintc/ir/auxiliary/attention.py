"""`aux.attention`: causal softmax attention over heads, with grouped keys and values and rotary positions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Pulled
from tintc.ir.core import register
from tintc.ir.functions import merge_heads, split_heads
from tintc.ir.scores import ScoreOptions, attention_gradients, attention_probabilities


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

    def _scored_by(self, context: Context) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return what scores are made with besides q and k: who may see whom, positions, vectors."""
        vectors = {key: context.parameter(name) for key, name in self.vectors().items()}
        return context.inputs.allowed, context.inputs.position_ids, vectors

    def evaluate(self, context: Context, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        values = self.by_query_head(split_heads(v, self.n_kv_heads))
        return merge_heads(attention_probabilities(self, q, k, *self._scored_by(context)) @ values)

    def pullback(self, context: Context, dy: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Pulled:
        """Return dv (Def. E.3), and dq and dk if the full gradient is asked for; otherwise the scores are constants.

        Query heads of a group add up in dk and dv.
        """
        if context.full:
            return attention_gradients(self, context.difference, dy, q, k, v, *self._scored_by(context)), {}
        weights = attention_probabilities(self, q, k, *self._scored_by(context))
        dv = self.by_key_head(weights.transpose(-1, -2) @ split_heads(dy, self.n_heads))
        return (None, None, merge_heads(dv)), {}
