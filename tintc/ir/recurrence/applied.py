"""The matrix of a recurrence, and its products with values in time and memory that grow with the text."""

from __future__ import annotations

import torch
from torch import Tensor

from tintc.ir.recurrence.chunks import by_chunks, transposed_by_chunks
from tintc.ir.recurrence.heads import Heads, RecurrenceOptions, at_last_write
from tintc.ir.recurrence.scan import one_token, scan, transposed_scan

SMALL_STATE = 64
"""Numbers of a head's state up to which tokens one after the other are faster than chunks, whose matrices are then
larger."""


def recurrence_matrix(options: RecurrenceOptions, heads: Heads, skip: Tensor | None) -> Tensor:
    """Return A, ``[B, H, T, n T]``. skip: the vector of that option."""
    total = heads.g.cumsum(2)
    queries, keys = (x.repeat_interleave(options.n_heads // options.n_key_heads, 1) for x in (heads.q, heads.k))
    scores = _decayed_scores(queries, keys, total)
    if options.delta:
        strict = (heads.beta * _decayed_scores(keys, keys, total)).tril(-1)
        unit = torch.eye(scores.shape[-1], dtype=scores.dtype, device=scores.device)
        scores = torch.linalg.solve_triangular(unit + strict, scores, upper=False, left=False, unitriangular=True)
    matrix = (scores * heads.beta.transpose(-1, -2))[:, :, options.writes - 1 :: options.writes]
    if skip is None:
        return matrix
    return matrix + torch.diag_embed(skip.to(matrix.dtype)[:, None].expand(-1, matrix.shape[-1]))


def _decayed_scores(a: Tensor, b: Tensor, total: Tensor) -> Tensor:
    """Return ``sum_c a_tc b_jc exp(G_tc - G_jc)`` for j <= t, else 0: ``[.., T, T]`` of ``a, b [.., T, d_k]`` and
    ``total [.., T, d_k or 1]``."""
    later = torch.ones(a.shape[-2], a.shape[-2], dtype=torch.bool, device=a.device).triu(1)

    def decay(of: Tensor) -> Tensor:
        # The difference is taken before the exponential, which would overflow.
        return (of[..., :, None] - of[..., None, :]).masked_fill(later, -torch.inf).exp()

    if total.shape[-1] == 1:
        return (a @ b.transpose(-1, -2)) * decay(total[..., 0])
    coordinates = (a[..., :, None, c] * b[..., None, :, c] * decay(total[..., c]) for c in range(a.shape[-1]))
    return sum(coordinates, torch.zeros((), dtype=a.dtype, device=a.device))


def apply_recurrence(options: RecurrenceOptions, heads: Heads, v: Tensor, skip: Tensor | None) -> Tensor:
    """Return ``A v``, ``[B, H, T, d_v]``, for ``v [B, H, n T, d_v]``, in time and memory that grow with T."""
    y, _ = _recurrent(options, heads, v, None, keep=False)
    return with_skip(y, v, skip)


def continue_recurrence(
    options: RecurrenceOptions, heads: Heads, v: Tensor, skip: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the results at the tokens of `heads` and v, as `apply_recurrence` does, and the state that they leave.

    state ``[B, H, d_k, d_v]``: what the tokens before have left; None: they are a text's first.
    """
    y, after = _recurrent(options, heads, v, state, keep=True)
    assert after is not None
    return with_skip(y, v, skip), after


def _recurrent(
    options: RecurrenceOptions, heads: Heads, v: Tensor, state: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """Return results without `skip`, and, if it is to be kept, the state after the last token."""
    if state is not None and v.shape[2] == 1:
        return one_token(heads, v, state, options.delta)
    if _token_by_token(options):
        y, after = scan(heads, v, state)
    else:
        y, after = by_chunks(heads, v, state, options.delta, keep)
    return y[:, :, options.writes - 1 :: options.writes], after


def _token_by_token(options: RecurrenceOptions) -> bool:
    return not options.delta and options.key_dim * options.value_dim <= SMALL_STATE


def with_skip(y: Tensor, v: Tensor, skip: Tensor | None) -> Tensor:
    """Return a recurrence's results with what tokens add of their own values, or the transpose's with the like."""
    if skip is None:
        return y
    return torch.addcmul(y, skip.to(y.dtype)[:, None, None], v)


def apply_transposed_recurrence(options: RecurrenceOptions, heads: Heads, dy: Tensor, skip: Tensor | None) -> Tensor:
    """Return ``A^T dy``, ``[B, H, n T, d_v]``, in time and memory that grow with T."""
    if options.writes > 1:
        dy = at_last_write(dy, options.writes)
    if _token_by_token(options):
        dv = transposed_scan(heads, dy)
    else:
        dv = transposed_by_chunks(heads, dy, options.delta)
    return with_skip(dv, dy, skip)
