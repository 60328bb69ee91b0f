"""Recurrences by chunks of tokens that hand a state on: products of matrices, in memory that grows with the text.

In a chunk that begins with the state S, with strengths, decays and running sums G of its own tokens alone::

    U = (I + strict part of diag(beta) scores(k, k))^-1 diag(beta) (V - exp(G) k S)     (delta rule; else diag(beta) V)
    Y = scores(q, k) U + exp(G) q S
    S' = exp(G_last) S + (exp(G_last - G) k)^T U

where exp(G) multiplies a row, or each of its coordinates. Transposed, chunks come in the opposite order and hand on dS.
Heads that share queries and keys stand side by side: G groups of r heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.ir.recurrence.heads import Heads

CHUNK = 64
"""Tokens of a chunk."""


@dataclass(frozen=True)
class _Chunk:
    """The parts of a recurrence's matrix that belong to the C tokens at `here`.

    scores ``[B, G, r, C, C]``: of queries and keys; system ``[B, G, r, C, C]``: of which the strict lower part is that
    of ``diag(beta) scores(k, k)`` (None: no delta rule). reads ``[B, G, C or 2 C, d_k]``: what queries, and behind them
    keys, read the state with, each result times ``grown [B, G, r, C, 1]``; writes ``[B, G, C, d_k]``: what values are
    written with, times ``left [B, G, r, C, 1]`` before; both factors are None where `reads` and `writes` have them.
    beta ``[B, G, r, C, 1]``; decay: of the state, ``[B, G, 1, r, 1]`` or ``[B, G, d_k, 1, 1]``.
    """

    here: slice
    scores: Tensor
    system: Tensor | None
    reads: Tensor
    grown: Tensor | None
    writes: Tensor
    left: Tensor | None
    beta: Tensor
    decay: Tensor


def by_chunks(
    heads: Heads, v: Tensor, state: Tensor | None, delta: bool, keep: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Return the results ``[B, H, T, d_v]`` of values of that shape, and the state ``[B, H, d_k, d_v]`` after the last
    token if it is to be kept; state: before the first (None: zero)."""
    groups = _groups(heads)
    values = v.unflatten(1, (groups, -1))
    length = v.shape[2]
    held = None
    if state is not None:
        held = state.unflatten(1, (groups, -1)).transpose(2, 3)
    parts: list[Tensor] = []
    for chunk in _chunks(heads, groups, length, delta):
        seen = _read(chunk, held, values.shape[2])
        u = values[..., chunk.here, :]
        count = u.shape[-2]
        if chunk.system is not None:
            if seen is not None:
                u = u - seen[..., count:, :]
            u = _solve(chunk.system, chunk.beta * u)
        else:
            u = chunk.beta * u
        y = chunk.scores @ u
        if seen is not None:
            y = y + seen[..., :count, :]
        parts.append(y)
        if keep or chunk.here.stop < length:
            held = _added(held, chunk.decay, chunk.writes, _times(u, chunk.left))
    y = torch.cat(parts, -2).flatten(1, 2)
    if not keep or held is None:
        return y, None
    return y, held.transpose(2, 3).flatten(1, 2)


def transposed_by_chunks(heads: Heads, dy: Tensor, delta: bool) -> Tensor:
    """Return ``A^T dy`` for ``dy [B, H, T, d_v]``, without `skip`."""
    groups = _groups(heads)
    given = dy.unflatten(1, (groups, -1))
    length = dy.shape[2]
    held: Tensor | None = None
    parts: list[Tensor] = []
    for chunk in reversed(list(_chunks(heads, groups, length, delta))):
        here = given[..., chunk.here, :]
        du = chunk.scores.transpose(-1, -2) @ here
        if held is not None:
            du = du + _times(_by_head(chunk.writes @ held.flatten(-2), held.shape[3]), chunk.left)
        if chunk.system is not None:
            du = _solve_transposed(chunk.system, du)
        dv = chunk.beta * du
        parts.append(dv)
        if chunk.here.start:
            read = _times(here, chunk.grown)
            if chunk.system is not None:
                read = torch.cat((read, -_times(dv, chunk.grown)), -2)
            held = _added(held, chunk.decay, chunk.reads, read)
    return torch.cat(parts[::-1], -2).flatten(1, 2)


def _groups(heads: Heads) -> int:
    """Return how many groups of heads share queries and keys, decays by coordinate included."""
    if heads.g.shape[-1] > 1:
        return heads.g.shape[1]
    return heads.q.shape[1]


def _chunks(heads: Heads, groups: int, length: int, delta: bool) -> Iterator[_Chunk]:
    q, k = heads.q, heads.k
    if groups > q.shape[1]:
        q, k = (x.repeat_interleave(groups // x.shape[1], 1) for x in (q, k))
    g, beta = (x.unflatten(1, (groups, -1)) for x in (heads.g, heads.beta))
    for start in range(0, length, CHUNK):
        here = slice(start, min(start + CHUNK, length))
        parts = (q[:, :, here], k[:, :, here], g[:, :, :, here].cumsum(-2), beta[:, :, :, here])
        if g.shape[-1] > 1:
            yield _decaying_by_coordinate(here, *parts, delta)
        else:
            yield _decaying_by_head(here, *parts, delta)


def _decaying_by_head(here: slice, q: Tensor, k: Tensor, total: Tensor, beta: Tensor, delta: bool) -> _Chunk:
    """Return the chunk of queries and keys ``[B, G, C, d_k]`` and running sums of decays ``[B, G, r, C, 1]``."""
    count = q.shape[-2]
    later = torch.ones(count, count, dtype=torch.bool, device=q.device).triu(1)
    fade = (total - total.transpose(-1, -2)).masked_fill_(later, -torch.inf).exp_()
    reads = q
    if delta:
        reads = torch.cat((q, k), -2)
    products = (reads @ k.transpose(-1, -2)).unsqueeze(2)
    system = None
    if delta:
        system = beta * fade * products[..., count:, :]
    last = total[..., -1:, :]
    return _Chunk(
        here,
        products[..., :count, :] * fade,
        system,
        reads,
        total.exp(),
        k,
        (last - total).exp(),
        beta,
        last.exp().transpose(2, 3),
    )


def _decaying_by_coordinate(here: slice, q: Tensor, k: Tensor, total: Tensor, beta: Tensor, delta: bool) -> _Chunk:
    """Return the chunk of queries and keys ``[B, H, C, d_k]`` and running sums of decays ``[B, H, 1, C, d_k]``."""
    total = total.squeeze(2)
    grown = total.exp()
    last = total[..., -1:, :]
    reads = q * grown
    system = None
    if delta:
        scores, among_keys = decayed_products((q, k), k, total)
        system = beta * among_keys.unsqueeze(2)
        reads = torch.cat((reads, k * grown), -2)
    else:
        (scores,) = decayed_products((q,), k, total)
    decay = last.exp().transpose(-1, -2).unsqueeze(-1)
    writes = k * (last - total).exp()
    return _Chunk(here, scores.unsqueeze(2), system, reads, None, writes, None, beta, decay)


def decayed_products(lefts: tuple[Tensor, ...], b: Tensor, total: Tensor) -> list[Tensor]:
    """Return ``sum_c a_tc b_jc exp(G_tc - G_jc)`` for j <= t, else 0, ``[.., C, C]`` for every a of `lefts`.

    a, b, total ``[.., C, d_k]``. Tokens are halved again and again: between the halves, exponents are taken from the
    last token of the first one, so that none is positive, and what is left is a product of matrices.
    """
    count = b.shape[-2]
    size = 1 << (count - 1).bit_length()
    missing = (0, 0, 0, size - count)
    total = torch.cat((total, total[..., -1:, :].expand(*total.shape[:-2], size - count, -1)), -2)
    b = F.pad(b, missing)
    padded = [F.pad(a, missing) for a in lefts]
    results = [torch.diag_embed((a * b).sum(-1)) for a in padded]
    half = 1
    while half < size:
        sums = total.unflatten(-2, (-1, 2, half))
        middle = sums[..., 0, -1:, :]
        earlier = b.unflatten(-2, (-1, 2, half))[..., 0, :, :] * (middle - sums[..., 0, :, :]).exp()
        faded = (sums[..., 1, :, :] - middle).exp()
        for a, result in zip(padded, results, strict=True):
            later = a.unflatten(-2, (-1, 2, half))[..., 1, :, :] * faded
            pairs = (later @ earlier.transpose(-1, -2)).movedim(-3, -1)
            blocks = result.unflatten(-1, (-1, 2 * half)).unflatten(-3, (-1, 2 * half))
            blocks.diagonal(0, -4, -2)[..., half:, :half, :] = pairs
        half *= 2
    return [result[..., :count, :count] for result in results]


def _read(chunk: _Chunk, held: Tensor | None, shared: int) -> Tensor | None:
    """Return what queries and keys read from a state ``[B, G, d_k, r, d_v]``: ``[B, G, r, C or 2 C, d_v]``."""
    if held is None:
        return None
    seen = _by_head(chunk.reads @ held.flatten(-2), shared)
    if chunk.grown is None:
        return seen
    count = chunk.grown.shape[-2]
    return torch.cat([part * chunk.grown for part in seen.split(count, -2)], -2)


def _by_head(x: Tensor, shared: int) -> Tensor:
    """Return ``[B, G, r, C, d_v]`` of ``[B, G, C, r * d_v]``."""
    return x.unflatten(-1, (shared, -1)).transpose(2, 3)


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    """Return x times a factor of each of its rows; of keys behind queries, times the same once more."""
    if factor is None:
        return x
    return x * factor


def _added(held: Tensor | None, decay: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return ``decay held + keys^T values``, ``[B, G, d_k, r, d_v]``."""
    more = (keys.transpose(-1, -2) @ values.transpose(2, 3).flatten(-2)).unflatten(-1, (values.shape[2], -1))
    if held is None:
        return more
    return torch.addcmul(more, held, decay)


def _solve(system: Tensor, values: Tensor) -> Tensor:
    """Return ``(I + strict lower part of system)^-1 values``."""
    return torch.linalg.solve_triangular(system, values, upper=False, unitriangular=True)


def _solve_transposed(system: Tensor, values: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(system.transpose(-1, -2), values, upper=True, unitriangular=True)
