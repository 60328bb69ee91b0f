"""`aux.attention`: causal softmax attention over heads, with grouped keys and values and rotary positions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Pulled
from tintc.ir.core import register
from tintc.ir.functions import SCORE_VECTORS, attention_probabilities, merge_heads, split_heads


@register("aux.attention")
@dataclass(eq=False, kw_only=True)
class Attention(AuxOp):
    """y = concat_h(softmax(scale * q_h k_h^T) v_h); q ``[B, T, n_heads * head_dim]``, k and v with `n_kv_heads` heads.

    inv_freq: parameter name of the rotary frequencies (empty: none), `rotary_style` half or interleaved; both q and k
    turn by their position ids. Query head h reads key/value head ``h // (n_heads // n_kv_heads)``. window: how many
    tokens a query sees, itself included (0: all before it); soft_cap: c of ``c tanh(score / c)`` (0: none); slopes: per
    head, times the distance from query to key, are added to the scores (ALiBi; empty: none). gain: name of a vector
    ``[head_dim]`` that multiplies the products of rotated coordinates (norms of q and k after their rotation).
    value_dim: width of a head of v and of the result (0: head_dim). query_scale: name of a vector ``[P]``, whose entry
    p multiplies queries at position p. sinks: name of a vector ``[n_heads]`` of logits; every query sees, beside its
    keys, one of that logit whose value is zero.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float
    inv_freq: str = ""
    rotary_style: str = ""
    window: int = 0
    soft_cap: float = 0.0
    slopes: tuple[float, ...] = ()
    gain: str = ""
    value_dim: int = 0
    query_scale: str = ""
    sinks: str = ""

    def verify(self) -> None:
        self.expect(len(self.operands) == 3, "takes q, k and v")
        q, k, v = (value.type.width for value in self.operands)
        value_dim = self.value_dim or self.head_dim
        wanted = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim, self.n_kv_heads * value_dim)
        self.expect(self.n_heads % self.n_kv_heads == 0, f"{self.n_heads} heads do not share {self.n_kv_heads} evenly")
        self.expect((q, k, v) == wanted, f"q, k and v have the widths {(q, k, v)}, not {wanted}")
        self.expect(self.result.type.width == self.n_heads * value_dim, f"the result is {self.result.type}")
        self.expect(
            bool(self.inv_freq) == (self.rotary_style in ("half", "interleaved")), "rotary style and frequencies"
        )
        self.expect(self.window >= 0 and self.soft_cap >= 0, "a window and a soft cap are not negative")
        self.expect(len(self.slopes) in (0, self.n_heads), f"{len(self.slopes)} slopes for {self.n_heads} heads")

    def probabilities(self, context: Context, q: Tensor, k: Tensor) -> Tensor:
        """Return the attention probabilities ``[B, n_heads, T, T]``."""
        vectors = {key: context.parameter(name) for key in SCORE_VECTORS if (name := getattr(self, key))}
        return attention_probabilities(self, q, k, context.inputs.allowed, context.inputs.position_ids, **vectors)

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
