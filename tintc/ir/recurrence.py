"""Recurrences that are linear in their values: one definition for delta rules and state spaces.

Per head, ``y = A v`` with a causal matrix A of queries, keys and gates (construction.md, section 16). With strengths
``beta``, log decays g and their running sum G over the text::

    scores(a, b)_tj = sum_c a_tc b_jc exp(G_tc - G_jc)   for j <= t, else 0
    A = scores(q, k) (I + strict part of diag(beta) scores(k, k))^-1 diag(beta) + diag(skip)

without the inverse where there is no delta rule. Gated delta rules have one decay for a head; KDA has one for each
coordinate c of its keys; Mamba 2's state space has q = C, k = B, ``beta = dt`` and ``g = a dt``; Mamba's selective scan
is the same with a head for every channel, of value width 1, and a decay for each of its states.

A token may write n times, with n keys, values and strengths, as in a product of n Householder matrices. Then all of the
above is of n T writes, one after the other; a token decays the state before its first, and reads it after its last.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.ir.core import Op
from tintc.ir.functions import merge_heads, split_heads
from tintc.ir.recurrence_chunks import by_chunks, transposed_by_chunks
from tintc.ir.recurrence_scan import one_token, scan, transposed_scan

SMALL_STATE = 64
"""Numbers of a head's state up to which tokens one after the other are faster than chunks, whose matrices are then
larger."""


@dataclass(eq=False, kw_only=True)
class RecurrenceOptions(Op):
    """The heads of a recurrence, and how its matrix is made.

    Head h of v and of the result reads query/key head ``h // (n_heads // n_key_heads)``, of width `key_dim`; v's have
    `value_dim`. scale: of queries. delta: whether the delta rule subtracts what the state holds under a key already.
    by_coordinate: whether decays are those of each coordinate of a head's keys, ``[B, T, n_heads * key_dim]``, or of
    the head, ``[B, T, n_heads]``. unit_eps: above 0, queries and keys are divided by ``sqrt(|x|^2 + unit_eps)``. skip:
    name of a vector ``[n_heads]``: how much of v a token adds to its own result (empty: nothing). writes: n, how often
    a token writes; within a head, the keys of all its writes stand side by side, and so do values and strengths.
    """

    n_heads: int
    n_key_heads: int
    key_dim: int
    value_dim: int
    scale: float = 1.0
    delta: bool = False
    by_coordinate: bool = False
    unit_eps: float = 0.0
    skip: str = ""
    writes: int = 1

    def verify(self) -> None:
        shared = self.n_key_heads > 0 and self.n_heads % self.n_key_heads == 0
        self.expect(shared, f"{self.n_heads} heads do not share {self.n_key_heads} evenly")
        self.expect(self.unit_eps >= 0, "the eps of unit queries and keys is not negative")
        self.expect(self.writes > 0, "a token writes once at least")
        alone = self.writes == 1 or not self.skip
        self.expect(alone, "a token that writes several times adds none of its values to its own result")

    def widths(self) -> tuple[int, ...]:
        """Return the widths of q, k, v, g and beta."""
        queries = self.n_key_heads * self.key_dim
        decays = self.n_heads
        if self.by_coordinate:
            decays = self.n_heads * self.key_dim
        return queries, queries * self.writes, self.result_width() * self.writes, decays, self.n_heads * self.writes

    def result_width(self) -> int:
        """Return the width of the result."""
        return self.n_heads * self.value_dim

    def mixed_widths(self, place: int, transposed: bool) -> tuple[list[int], int]:
        """Return the widths of a module's operands, of which number `place` meets the matrix, and of its result."""
        q, k, v, g, beta = self.widths()
        meets, result = v, self.result_width()
        if transposed:
            meets, result = result, meets
        operands = [q, k, g, beta]
        operands.insert(place, meets)
        return operands, result

    def split_values(self, v: Tensor) -> Tensor:
        """Return the values of all writes by head, ``[B, T, W] -> [B, H, n T, d_v]``."""
        return by_write(split_heads(v, self.n_heads), self.writes)

    def merge_values(self, v: Tensor) -> Tensor:
        """Return ``[B, T, W]`` of ``[B, H, n T, d_v]``, the inverse of `split_values`."""
        return merge_heads(by_token(v, self.writes))

    def options(self) -> dict[str, Any]:
        """Return all options, by name."""
        inherited = {f.name for f in fields(Op)}
        return {f.name: getattr(self, f.name) for f in fields(RecurrenceOptions) if f.name not in inherited}


def by_write(heads: Tensor, writes: int) -> Tensor:
    """Return what all writes of a token have side by side, one write after the other: ``[B, H, T, n d] -> [B, H, n T,
    d]``."""
    return heads.unflatten(-1, (writes, -1)).flatten(2, 3)


def by_token(heads: Tensor, writes: int) -> Tensor:
    """Return ``[B, H, T, n d]`` of ``[B, H, n T, d]``, the inverse of `by_write`."""
    return heads.unflatten(2, (-1, writes)).flatten(3)


@dataclass(frozen=True)
class Heads:
    """What a recurrence's matrix is made of, by head and write: q and k ``[B, H_k, n T, d_k]``, of which as many heads
    as share a key head read each; log decays g ``[B, H, n T, d_k]`` or ``[B, H, n T, 1]``, beta ``[B, H, n T, 1]``.

    Queries are those of a token's last write, decays those before its first; the others are 0.
    """

    q: Tensor
    k: Tensor
    g: Tensor
    beta: Tensor

    @classmethod
    def of(
        cls, options: RecurrenceOptions, q: Tensor, k: Tensor, g: Tensor, beta: Tensor, valid: Tensor | None
    ) -> Heads:
        """Return them from flat values ``[B, T, ...]``; tokens that are not ``valid [B, T]`` (None: all are) neither
        add nor decay."""
        n = options.writes
        queries = split_heads(q, options.n_key_heads)
        keys = by_write(split_heads(k, options.n_key_heads), n)
        if options.unit_eps:
            queries, keys = (_of_unit_length(x, options.unit_eps) for x in (queries, keys))
        if options.scale != 1:
            queries = queries * options.scale
        decays, strengths = (split_heads(value, options.n_heads) for value in (g, beta))
        if valid is not None:
            real = valid[:, None, :, None].to(q.dtype)
            decays, strengths = decays * real, strengths * real
        if n > 1:
            queries = _at_last_write(queries, n)
            decays = by_write(F.pad(decays, (0, (n - 1) * decays.shape[-1])), n)
        return cls(queries, keys, decays, by_write(strengths, n))


def _of_unit_length(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def _at_last_write(heads: Tensor, writes: int) -> Tensor:
    """Return ``[B, H, n T, d]`` of ``[B, H, T, d]``, zero at all but the last write of each token."""
    return by_write(F.pad(heads, ((writes - 1) * heads.shape[-1], 0)), writes)


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
        dy = _at_last_write(dy, options.writes)
    if _token_by_token(options):
        dv = transposed_scan(heads, dy)
    else:
        dv = transposed_by_chunks(heads, dy, options.delta)
    return with_skip(dv, dy, skip)
