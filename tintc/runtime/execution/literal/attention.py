"""TinT attention (paper Def. C.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tintc.ir.functions import SCORE_VECTORS, alibi, masked_softmax, rotate, sink_softmax, soft_capped
from tintc.ir.structure import AttentionSpec
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
    T_sim, have score and value 0 there, because Theorem C.2 wants their number constant.
    """

    w_o: nn.Module
    sink: Tensor

    def __init__(self, spec: AttentionSpec, sim_seq_len: int):
        super().__init__()
        self.spec = spec
        self.n_heads, self.width, self.kind, self.transpose = spec.n_heads, spec.width, spec.kind, spec.transpose
        self.sim_seq_len = sim_seq_len
        self.references: dict[str, Reference] = {}
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

    def position_matrix(self, letter: str) -> Tensor:
        """Return ``p_q``, ``p_k`` or ``p_v [d_h, T_sim]``."""
        shared = self.references.get(f"p_{letter}")
        return getattr(self, f"p_{letter}") if shared is None else shared.tensor()

    def vector(self, key: str) -> Tensor | None:
        """Return a vector of the scores (one of `SCORE_VECTORS`); None if this attention has none."""
        reference = self.references.get(key)
        return None if reference is None else reference.tensor()

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
        inv_freq, gain, query_scale, sinks = (self.vector(key) for key in SCORE_VECTORS)
        if token_positions is not None and inv_freq is not None:
            q = rotate(q, token_positions, inv_freq, self.spec.rotary_style)
            k = rotate(k, token_positions, inv_freq, self.spec.rotary_style)
        q = q if gain is None else q * gain.to(q.dtype)
        if token_positions is not None and query_scale is not None:
            q = q * query_scale[token_positions].to(q.dtype)[:, None, :, None]
        scores = q @ k.transpose(-1, -2)
        if self.kind == "softmax":
            scores = soft_capped(scores, self.spec.soft_cap)
            if self.spec.slopes and token_positions is not None:
                slopes = (*self.spec.slopes, *[0.0] * (self.n_heads - len(self.spec.slopes)))
                scores = scores + alibi(slopes, token_positions, token_positions, scores)
            allowed = torch.ones_like(scores, dtype=torch.bool) if mask is None else (mask != 0)[:, None]
            sinks = None if sinks is None else F.pad(sinks, (0, self.n_heads - len(sinks)))
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
        lam = getattr(self, f"lam_{letter}")
        at_positions = self.position_matrix(letter).to(e.dtype)[:, positions].permute(1, 2, 0)
        return heads + lam.to(e.dtype)[:, None, None] * at_positions[:, None]

    def extra_repr(self) -> str:
        return f"{self.kind}, n_heads={self.n_heads}, width={self.width}, transpose={self.transpose}"
