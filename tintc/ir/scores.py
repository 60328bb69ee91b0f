"""The scores of attention: one place for their options, which both dialects have, and their definition.

Whatever changes how scores are made (rotations, windows, soft caps, ALiBi, gains, scales, sinks) is a field of
`ScoreOptions` and a line of `attention_probabilities`; the fused and the literal form follow these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from torch import Tensor

from tintc.ir.core import Op
from tintc.ir.functions import (
    FiniteDifference,
    alibi,
    causal_mask,
    masked_softmax,
    merge_heads,
    rotate,
    soft_capped,
    split_heads,
)

SCORE_VECTORS = ("inv_freq", "gain", "query_scale", "sinks")
"""Options that name vectors which scores are made with."""


@dataclass(eq=False, kw_only=True)
class ScoreOptions(Op):
    """The heads of causal softmax attention, and how their scores are made of q and k.

    Query head h reads key/value head ``h // (n_heads // n_kv_heads)``; its scores are ``scale <q, k>``. value_dim:
    width of a head of v and of the result (0: head_dim).

    inv_freq: parameter name of the rotary frequencies (empty: none), `rotary_style` half or interleaved; both q and k
    turn by their position ids. window: how many tokens a query sees, itself included (0: all before it); soft_cap: c of
    ``c tanh(score / c)`` (0: none); slopes: per head, times the distance from query to key, are added to the scores
    (ALiBi; empty: none). gain: name of a vector ``[head_dim]`` that multiplies the products of rotated coordinates
    (norms of q and k after their rotation). query_scale: name of a vector ``[P]``, whose entry p multiplies queries at
    position p. sinks: name of a vector ``[n_heads]`` of logits; every query sees, beside its keys, one of that logit
    whose value is zero.
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

    @property
    def value_width(self) -> int:
        """Return the width of one head of v."""
        return self.value_dim or self.head_dim

    def by_query_head(self, heads: Tensor) -> Tensor:
        """Return key or value heads ``[B, n_kv_heads, ...]`` as every query head reads them: ``[B, n_heads, ...]``."""
        if self.n_heads == self.n_kv_heads:
            return heads
        return heads.repeat_interleave(self.n_heads // self.n_kv_heads, 1)

    def by_key_head(self, heads: Tensor) -> Tensor:
        """Return the transpose: the sum over the query heads ``[B, n_heads, ...]`` that read a head of k or v."""
        if self.n_heads == self.n_kv_heads:
            return heads
        return heads.unflatten(1, (self.n_kv_heads, -1)).sum(2)

    def verify(self) -> None:
        shared = self.n_kv_heads > 0 and self.n_heads % self.n_kv_heads == 0
        self.expect(shared, f"{self.n_heads} heads do not share {self.n_kv_heads} evenly")
        rotary = self.rotary_style in ("half", "interleaved")
        self.expect(bool(self.inv_freq) == rotary, "rotary frequencies have a style, half or interleaved")
        self.expect(self.window >= 0 and self.soft_cap >= 0, "a window and a soft cap are not negative")
        self.expect(len(self.slopes) in (0, self.n_heads), f"{len(self.slopes)} slopes for {self.n_heads} heads")

    def options(self) -> dict[str, Any]:
        """Return all options, by name."""
        inherited = {f.name for f in fields(Op)}
        return {f.name: getattr(self, f.name) for f in fields(ScoreOptions) if f.name not in inherited}

    def vectors(self) -> dict[str, str]:
        """Return the names of the vectors that scores are made with, by option."""
        names = {key: getattr(self, key) for key in SCORE_VECTORS}
        return {key: name for key, name in names.items() if name}


class Scores(NamedTuple):
    """The scores of attention, and what they are made of, in the shapes of heads.

    queries ``[B, n_heads, T, d]``, keys ``[B, n_kv_heads, T, d]``: at their positions, without `scale`; capped, final
    ``[B, n_heads, T, T]``: scores after the soft cap, and after all; seen ``[B, 1, T, T]``: which keys a query sees.
    """

    queries: Tensor
    keys: Tensor
    capped: Tensor
    final: Tensor
    seen: Tensor


def attention_scores(
    op: ScoreOptions, q: Tensor, k: Tensor, allowed: Tensor, positions: Tensor, vectors: Mapping[str, Tensor]
) -> Scores:
    """Return ``cap(scale * (s_p gain turn(q)) turn(k)^T) + alibi`` per head; arguments as of
    `attention_probabilities`."""
    queries = split_heads(q, op.n_heads)
    keys = split_heads(k, op.n_kv_heads)
    if "inv_freq" in vectors:
        queries = rotate(queries, positions, vectors["inv_freq"], op.rotary_style)
        keys = rotate(keys, positions, vectors["inv_freq"], op.rotary_style)
    queries = _weighed(op, queries, positions, vectors)
    both = op.scale * queries @ op.by_query_head(keys).transpose(-1, -2)
    capped = soft_capped(both, op.soft_cap)
    final = capped
    if op.slopes:
        final = capped + alibi(op.slopes, positions, positions, capped)
    seen = allowed & causal_mask(q.shape[1], q.device, op.window)
    return Scores(queries, keys, capped, final, seen[:, None])


def _weighed(op: ScoreOptions, queries: Tensor, positions: Tensor, vectors: Mapping[str, Tensor]) -> Tensor:
    """Return query heads, rotated or not yet turned back, times gain and scale of their position, if there are any."""
    if "gain" in vectors:
        queries = queries * vectors["gain"]
    if "query_scale" in vectors:
        queries = queries * vectors["query_scale"][positions][:, None, :, None]
    return queries


def attention_probabilities(
    op: ScoreOptions, q: Tensor, k: Tensor, allowed: Tensor, positions: Tensor, vectors: Mapping[str, Tensor]
) -> Tensor:
    """Return the softmax of `attention_scores` per head, beside its sink, ``[B, n_heads, T, T]``.

    q and k are flat, ``[B, T, heads * d]``. `allowed [B, T, T]` says which keys a query may see besides the causal mask
    and the window; ``positions [B, T]``; vectors: those of `ScoreOptions.vectors`, by option.
    """
    scores = attention_scores(op, q, k, allowed, positions, vectors)
    return masked_softmax(scores.final, scores.seen, vectors.get("sinks"))


def attention_gradients(
    op: ScoreOptions,
    difference: FiniteDifference,
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor,
    positions: Tensor,
    vectors: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (dq, dk, dv) of attention (construction.md, section 4.4); all flat, other arguments as of
    `attention_probabilities`.

    With ``c_tj = <dy_t, v_j>`` over the keys that t sees, the gradient of t's scores is the derivative of their softmax
    P along c_t, a finite difference with the step ``eps / |c_t|`` (`eps` itself where it is fixed): P is read with
    scores that are c_t, times the step, off. A soft cap's own derivative is ``1 - (score / cap)^2``. What is
    differentiated before the scores is linear in q and k, and turned back exactly.
    """
    scores = attention_scores(op, q, k, allowed, positions, vectors)
    heads = split_heads(dy, op.n_heads)
    c = heads @ op.by_query_head(split_heads(v, op.n_kv_heads)).transpose(-1, -2)
    c = c.masked_fill(~scores.seen, 0.0)

    def probabilities(moved: Tensor) -> Tensor:
        return masked_softmax(moved, scores.seen, vectors.get("sinks"))

    # The step of `FiniteDifference` is relative to the root mean square, and |c| is sqrt(T) times that.
    slopes = difference.derivative(probabilities, scores.final, c, c.shape[-1] ** -0.5)
    if op.soft_cap:
        slopes = slopes * (1 - (scores.capped / op.soft_cap).square())
    slopes = op.scale * slopes
    dq = _weighed(op, slopes @ op.by_query_head(scores.keys), positions, vectors)
    dk = op.by_key_head(slopes.transpose(-1, -2) @ scores.queries)
    if "inv_freq" in vectors:
        dq = rotate(dq, -positions, vectors["inv_freq"], op.rotary_style)
        dk = rotate(dk, -positions, vectors["inv_freq"], op.rotary_style)
    dv = op.by_key_head(probabilities(scores.final).transpose(-1, -2) @ heads)
    return merge_heads(dq), merge_heads(dk), merge_heads(dv)
