"""Recurrences token by token: of one token, and of texts where the state of a head is so small that a matrix for every
chunk would be larger.

The state after token t is ``S_t = exp(g_t) S_(t-1) + k_t (beta_t v_t)^T``, and its result ``S_t^T q_t``. The transpose
is the same recurrence from the end of the text: queries and keys change places, and a state decays by the next token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.ir.recurrence.heads import Heads

SPAN = 32
"""Tokens whose states exist at one time."""


def one_token(heads: Heads, v: Tensor, state: Tensor, delta: bool) -> tuple[Tensor, Tensor]:
    """Return the result ``[B, H, 1, d_v]`` of one token, and the state ``[B, H, d_k, d_v]`` that it leaves."""
    groups = heads.q.shape[1]
    shared = v.shape[1] // groups
    q, k = (_for_each_head(x, shared) for x in (heads.q, heads.k))
    faded = _product(state, heads.g.transpose(-1, -2).exp())
    if delta:
        v = v - k @ faded
    if torch.is_grad_enabled():
        after = torch.addcmul(faded, k.transpose(-1, -2), heads.beta * v)
    else:
        after = faded.addcmul_(k.transpose(-1, -2), heads.beta * v)
    if v.shape[-1] > 1:
        return q @ after, after
    # One product for a group, where every head of width 1 would have a small one of its own.
    return _results(heads.q, after.unflatten(1, (groups, shared))).flatten(1, 2).unsqueeze(2), after


def _for_each_head(x: Tensor, shared: int) -> Tensor:
    """Return ``[B, G r, 1, d]`` of ``x [B, G, 1, d]`` that r heads share, a view where it can be one."""
    if x.shape[1] == 1:
        return x.expand(-1, shared, -1, -1)
    if shared == 1:
        return x
    return x.repeat_interleave(shared, 1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a b``, written over b if it is as large and autograd does not record it."""
    if torch.is_grad_enabled() or a.shape != b.shape or a.dtype != b.dtype:
        return a * b
    return b.mul_(a)


def scan(heads: Heads, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the results ``[B, H, T, d_v]`` and the state ``[B, H, d_k, d_v]`` after the last token, without delta
    rule; state: before the first (None: zero)."""
    return _scanned(heads.q, heads.k, heads.g, heads.beta * v, state)


def transposed_scan(heads: Heads, dy: Tensor) -> Tensor:
    """Return ``A^T dy`` for ``dy [B, H, T, d_v]``, without `skip`."""
    next_decays = F.pad(heads.g[:, :, 1:], (0, 0, 0, 1))
    queries, keys, decays, values = (x.flip(2) for x in (heads.k, heads.q, next_decays, dy))
    dv, _ = _scanned(queries, keys, decays, values, None)
    return heads.beta * dv.flip(2)


def _scanned(q: Tensor, k: Tensor, g: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the results and the last state, with strengths multiplied into ``v [B, H, T, d_v]`` already."""
    groups = q.shape[1]
    shared = v.shape[1] // groups
    parts: list[Tensor] = []
    for start in range(0, v.shape[2], SPAN):
        here = slice(start, start + SPAN)
        decays = g[:, :, here].movedim(2, 0).exp().unsqueeze(-1)
        keys, queries = (x[:, :, here].movedim(2, 0).unsqueeze(3) for x in (k, q))
        values = v[:, :, here].movedim(2, 0).unflatten(2, (groups, shared))
        added = (keys.unsqueeze(-1) * values.unsqueeze(-2)).flatten(2, 3)
        states = _states(decays, added, state)
        state = states[-1]
        parts.append(_results(queries, states.unflatten(2, (groups, shared))))
    assert state is not None
    return torch.cat(parts).flatten(2, 3).movedim(0, 2), state.clone()


def _results(queries: Tensor, states: Tensor) -> Tensor:
    """Return ``[.., G, r, d_v]`` of queries ``[.., G, 1, d_k]`` and states ``[.., G, r, d_k, d_v]``."""
    if states.shape[-1] == 1:
        return states.squeeze(-1) @ queries.transpose(-1, -2)
    return (queries.unsqueeze(3) @ states).squeeze(-2)


def _states(decays: Tensor, added: Tensor, state: Tensor | None) -> Tensor:
    """Return the states ``[n, B, H, d_k, d_v]`` after each token."""
    if state is None:
        state = torch.zeros_like(added[0])
    if torch.is_grad_enabled():
        states: list[Tensor] = []
        for decay, more in zip(decays, added, strict=True):
            state = torch.addcmul(more, decay, state)
            states.append(state)
        return torch.stack(states)
    for decay, more in zip(decays.unbind(), added.unbind(), strict=True):
        state = more.addcmul_(decay, state)
    return added
