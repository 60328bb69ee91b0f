"""TinT attention (paper Def. C.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tintc.ir.block_specs import AttentionSpec
from tintc.ir.functions import alibi, masked_softmax, rotate, sink_softmax, soft_capped
from tintc.runtime.execution.literal.split import build_split
from tintc.runtime.execution.module_tree import Reference


class TintAttention(nn.Module):
    """Linear or softmax attention over the chunks of an embedding, with one-hot positions.

    For head h, with ``e_t`` the embedding and ``p_t`` the position of entry t::

        q_t = (w_q e_t)_h + lam_q[h] * p_q[:, p_t]      (k and v alike)
        out_t = sum_j M_tj <q_t, k_j> v_j               kind "linear"
        out_t = sum_j softmax_j(<q_t, k_j>; M) v_j      kind "softmax", beside the auxiliary's own sinks, if any
        out_t = sum_j softmax_j(M_tj <q_t, k_j>) v_j    kind "sink", the softmax beside a sink of value 0

    The heads' outputs are concatenated and pass through `w_o`. With `transpose`, ``out_t = sum_j a_jt v_j``.

    ``w_q, w_k, w_v, w_o`` are split operations; ``p_q, p_k, p_v [d_h, T_sim]``, ``lam_q, lam_k, lam_v [H]``. Position
    matrices are the module's own, or shared by modules: these belong to the model's ``structure.positions`` and are
    only referred to here, as are the vectors of scores (`references`). A term that the construction leaves out has
    zeros, which are not stored. Kind "sink" has the sink's logits, ``sink [H]``; positions beyond the text, up to
    T_sim, have score and value 0 there, because Theorem C.2 wants their number constant. ``w_p, w_r`` make a second
    product that softmax scores have added, and `AttentionSpec.gradient` says whose gradient the results are.
    """

    w_o: nn.Module
    sink: Tensor

    def __init__(self, spec: AttentionSpec, sim_seq_len: int):
        super().__init__()
        self.spec = spec
        self.n_heads = spec.n_heads
        self.width = spec.width
        self.kind = spec.kind
        self.transpose = spec.transpose
        self.sim_seq_len = sim_seq_len
        self.references: dict[str, Reference] = {}
        letters = "qkvo"
        if spec.w_p is not None:
            letters = "qkvopr"
        for letter in letters:
            setattr(self, f"w_{letter}", build_split(getattr(spec, f"w_{letter}"), spec.n_heads * spec.width))
        for letter in "qkv":
            if getattr(spec, f"positions_{letter}") is not None:
                setattr(self, f"lam_{letter}", nn.Parameter(torch.empty(spec.n_heads)))
            else:
                self.register_buffer(f"lam_{letter}", torch.zeros(spec.n_heads), persistent=False)
                self.register_buffer(f"p_{letter}", torch.zeros(spec.width, sim_seq_len), persistent=False)
        if spec.sink is not None:
            self.sink = nn.Parameter(torch.empty(spec.n_heads))

    def position_matrix(self, letter: str) -> Tensor:
        """Return ``p_q``, ``p_k`` or ``p_v [d_h, T_sim]``."""
        shared = self.references.get(f"p_{letter}")
        if shared is not None:
            return shared.tensor()
        return getattr(self, f"p_{letter}")

    def vector(self, key: str) -> Tensor | None:
        """Return a vector of the scores (one of `SCORE_VECTORS`); None if this attention has none."""
        reference = self.references.get(key)
        if reference is None:
            return None
        return reference.tensor()

    def forward(
        self,
        e: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        token_positions: Tensor | None = None,
        keep: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return ``[B, T_sim, D_sim]`` for ``e [B, T_sim, D_sim]`` and ``positions [B, T_sim]``, indices.

        mask ``[B, T_sim, T_sim]``: multiplies linear and sink scores, excludes softmax scores where zero; None is all
        ones.
        token_positions ``[B, T_sim]``: the auxiliary's position ids, by which q and k of a rotary attention turn.
        keep: receives the scores ``[B, H, T_sim, T_sim]`` that weigh the values, and gives those to weigh them with.
        """
        q, k, v = (self._heads(letter, e, positions) for letter in "qkv")
        q = self._weighed(self._turned(q, token_positions), token_positions)
        k = self._turned(k, token_positions)
        if self.spec.gradient == "queries":
            v = self._turned(v, token_positions)
        elif self.spec.gradient == "keys":
            v = self._weighed(self._turned(v, token_positions), token_positions)
        scores, slope = self._scores(q, k, e, mask, token_positions)
        if keep is not None:
            scores = keep(scores)
        if slope is not None:
            scores = scores * slope
        if self.transpose:
            scores = scores.transpose(-1, -2)
        out = scores @ v
        if self.spec.gradient == "queries":
            out = self._turned(self._weighed(out, token_positions), token_positions, back=True)
        elif self.spec.gradient == "keys":
            out = self._turned(out, token_positions, back=True)
        return self.w_o(out.transpose(1, 2).flatten(-2))

    def _scores(
        self, q: Tensor, k: Tensor, e: Tensor, mask: Tensor | None, token_positions: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the scores ``[B, H, T_sim, T_sim]`` that weigh the values, and the slope of a soft cap where the
        gradient of scores is taken (None elsewhere)."""
        scores = q @ k.transpose(-1, -2)
        slope: Tensor | None = None
        if self.kind == "softmax":
            scores = soft_capped(scores, self.spec.soft_cap)
            if self.spec.gradient and self.spec.soft_cap:
                slope = 1 - (scores / self.spec.soft_cap).square()
            if self.spec.slopes and token_positions is not None:
                slopes = (*self.spec.slopes, *[0.0] * (self.n_heads - len(self.spec.slopes)))
                scores = scores + alibi(slopes, token_positions, token_positions, scores)
            if self.spec.w_p is not None:
                scores = scores + self._split("p", e) @ self._split("r", e).transpose(-1, -2)
            allowed = torch.ones_like(scores, dtype=torch.bool)
            if mask is not None:
                allowed = (mask != 0)[:, None]
            sinks = self.vector("sinks")
            if sinks is not None:
                sinks = F.pad(sinks, (0, self.n_heads - len(sinks)))
            scores = masked_softmax(scores, allowed, sinks)
        elif mask is not None:
            scores = scores * mask[:, None].to(scores.dtype)
        if self.kind == "sink":
            scores = sink_softmax(scores, self.sink, self.sim_seq_len - e.shape[1])
        return scores, slope

    def _turned(self, heads: Tensor, token_positions: Tensor | None, back: bool = False) -> Tensor:
        """Return heads ``[B, H, T_sim, width]`` rotated by the auxiliary's positions, or turned back; as they are where
        there is no rotary embedding."""
        inv_freq = self.vector("inv_freq")
        if token_positions is None or inv_freq is None:
            return heads
        if back:
            token_positions = -token_positions
        return rotate(heads, token_positions, inv_freq, self.spec.rotary_style)

    def _weighed(self, queries: Tensor, token_positions: Tensor | None) -> Tensor:
        """Return query heads times gain and scale of their position, if there are any."""
        gain = self.vector("gain")
        if gain is not None:
            gain = F.pad(gain, (0, self.width - len(gain)))  # a head of values may be wider
            queries = queries * gain.to(queries.dtype)
        query_scale = self.vector("query_scale")
        if token_positions is not None and query_scale is not None:
            queries = queries * query_scale[token_positions].to(queries.dtype)[:, None, :, None]
        return queries

    def _split(self, letter: str, e: Tensor) -> Tensor:
        """Return heads ``[B, H, T_sim, width]`` of a split operation."""
        return getattr(self, f"w_{letter}")(e).unflatten(-1, (self.n_heads, self.width)).transpose(1, 2)

    def _heads(self, letter: str, e: Tensor, positions: Tensor) -> Tensor:
        """Return ``[B, H, T_sim, width]``: the split operation's part and the position's part."""
        heads = self._split(letter, e)
        lam = getattr(self, f"lam_{letter}")
        at_positions = self.position_matrix(letter).to(e.dtype)[:, positions].permute(1, 2, 0)
        return heads + lam.to(e.dtype)[:, None, None] * at_positions[:, None]

    def extra_repr(self) -> str:
        return f"{self.kind}, n_heads={self.n_heads}, width={self.width}, transpose={self.transpose}"
