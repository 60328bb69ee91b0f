"""TinT attention (paper Def. C.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tintc.ir.functions import SCORE_VECTORS, alibi, masked_softmax, rotate, sink_softmax, soft_capped
from tintc.ir.structure import AttentionSpec
from tintc.runtime.literal.split import build_split


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
    only referred to here (see `refer`). A term that the construction leaves out has zeros, which are not stored. Kind
    "sink" has the sink's logits, ``sink [H]``; positions beyond the text, up to T_sim, have score and value 0 there,
    because Theorem C.2 wants their number constant.
    """

    w_o: nn.Module
    sink: Tensor
    inv_freq: Tensor | None
    gain: Tensor | None
    query_scale: Tensor | None
    sinks: Tensor | None

    def __init__(self, spec: AttentionSpec, sim_seq_len: int):
        super().__init__()
        self.spec = spec
        self.n_heads, self.width, self.kind, self.transpose = spec.n_heads, spec.width, spec.kind, spec.transpose
        self.sim_seq_len = sim_seq_len
        for letter in "qkvo":
            setattr(self, f"w_{letter}", build_split(getattr(spec, f"w_{letter}"), spec.n_heads * spec.width))
        for letter in "qkv":
            if getattr(spec, f"positions_{letter}") is not None:
                setattr(self, f"lam_{letter}", nn.Parameter(torch.empty(spec.n_heads)))
            else:
                self.register_buffer(f"lam_{letter}", torch.zeros(spec.n_heads), persistent=False)
                self.register_buffer(f"p_{letter}", torch.zeros(spec.width, sim_seq_len), persistent=False)
        if spec.sink is not None:
            self.sink = nn.Parameter(torch.empty(spec.n_heads))

    def refer(self, positions: Mapping[str, nn.Parameter | None], vectors: Mapping[str, nn.Parameter]) -> None:
        """Point at the position matrices (by letter) and the vectors of scores that are not the module's own."""
        for letter, matrix in positions.items():
            if f"p_{letter}" not in self._parameters:
                object.__setattr__(self, f"p_{letter}", matrix)
        for key in SCORE_VECTORS:
            object.__setattr__(self, key, vectors.get(key))

    def forward(
        self,
        e: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        token_positions: Tensor | None = None,
        keep: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """``e [B, T_sim, D_sim]``, ``positions [B, T_sim]`` indices -> ``[B, T_sim, D_sim]``.

        mask ``[B, T_sim, T_sim]``: multiplies linear and sink scores, excludes softmax scores where zero; None is all
        ones.
        token_positions ``[B, T_sim]``: the auxiliary's position ids; given, q and k of a rotary attention are rotated.
        keep: receives the scores ``[B, H, T_sim, T_sim]`` that weigh the values, and gives those to weigh them with.
        """
        q, k, v = (self._heads(letter, e, positions) for letter in "qkv")
        if token_positions is not None and self.inv_freq is not None:
            q = rotate(q, token_positions, self.inv_freq, self.spec.rotary_style)
            k = rotate(k, token_positions, self.inv_freq, self.spec.rotary_style)
        q = q if self.gain is None else q * self.gain.to(q.dtype)
        if token_positions is not None and self.query_scale is not None:
            q = q * self.query_scale[token_positions].to(q.dtype)[:, None, :, None]
        scores = q @ k.transpose(-1, -2)
        if self.kind == "softmax":
            scores = soft_capped(scores, self.spec.soft_cap)
            if self.spec.slopes and token_positions is not None:
                slopes = (*self.spec.slopes, *[0.0] * (self.n_heads - len(self.spec.slopes)))
                scores = scores + alibi(slopes, token_positions, token_positions, scores)
            allowed = torch.ones_like(scores, dtype=torch.bool) if mask is None else (mask != 0)[:, None]
            sinks = None if self.sinks is None else F.pad(self.sinks, (0, self.n_heads - len(self.sinks)))
            scores = masked_softmax(scores, allowed, sinks)
        elif mask is not None:
            scores = scores * mask[:, None].to(scores.dtype)
        if self.kind == "sink":
            scores = sink_softmax(scores, self.sink, self.sim_seq_len - e.shape[1])
        if keep is not None:
            scores = keep(scores)
        out = (scores.transpose(-1, -2) if self.transpose else scores) @ v
        return self.w_o(out.transpose(1, 2).flatten(-2))

    def _heads(self, letter: str, e: Tensor, positions: Tensor) -> Tensor:
        """``[B, H, T_sim, width]``: the split operation's part and the position's part."""
        heads = getattr(self, f"w_{letter}")(e).unflatten(-1, (self.n_heads, self.width)).transpose(1, 2)
        lam, matrix = getattr(self, f"lam_{letter}"), getattr(self, f"p_{letter}")
        at_positions = matrix.to(e.dtype)[:, positions].permute(1, 2, 0)
        return heads + lam.to(e.dtype)[:, None, None] * at_positions[:, None]

    def extra_repr(self) -> str:
        return f"{self.kind}, n_heads={self.n_heads}, width={self.width}, transpose={self.transpose}"
