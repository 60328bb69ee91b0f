"""The scores of attention: one place for their options, which both dialects have, and their definition.

Whatever changes how scores are made (rotations, windows, soft caps, ALiBi, gains, scales, sinks) is a field of
`ScoreOptions` and a line of `attention_probabilities`; the fused and the literal form follow these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from tintc.ir.core import Op
from tintc.ir.functions import alibi, causal_mask, masked_softmax, rotate, soft_capped, split_heads

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


def attention_probabilities(
    op: ScoreOptions, q: Tensor, k: Tensor, allowed: Tensor, positions: Tensor, vectors: Mapping[str, Tensor]
) -> Tensor:
    """Return ``softmax(cap(scale * (s_p gain turn(q)) turn(k)^T) + alibi)`` per head, beside its sink,
    ``[B, n_heads, T, T]``.

    q and k are flat, ``[B, T, heads * d]``. `allowed [B, T, T]` says which keys a query may see besides the causal mask
    and the window; ``positions [B, T]``; vectors: those of `ScoreOptions.vectors`, by option.
    """
    queries = split_heads(q, op.n_heads)
    keys = split_heads(k, op.n_kv_heads)
    if "inv_freq" in vectors:
        queries = rotate(queries, positions, vectors["inv_freq"], op.rotary_style)
        keys = rotate(keys, positions, vectors["inv_freq"], op.rotary_style)
    if "gain" in vectors:
        queries = queries * vectors["gain"]
    if "query_scale" in vectors:
        queries = queries * vectors["query_scale"][positions][:, None, :, None]
    keys = keys.repeat_interleave(op.n_heads // op.n_kv_heads, 1)
    scores = soft_capped(op.scale * queries @ keys.transpose(-1, -2), op.soft_cap)
    if op.slopes:
        scores = scores + alibi(op.slopes, positions, positions, scores)
    seen = allowed & causal_mask(q.shape[1], q.device, op.window)
    return masked_softmax(scores, seen[:, None], vectors.get("sinks"))
