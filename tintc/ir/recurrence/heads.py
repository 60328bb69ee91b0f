"""What a recurrence's matrix is made of: its options, and queries, keys, gates and strengths by head and write."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.ir.core import Op
from tintc.ir.functions import merge_heads, split_heads


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
            queries = at_last_write(queries, n)
            decays = by_write(F.pad(decays, (0, (n - 1) * decays.shape[-1])), n)
        return cls(queries, keys, decays, by_write(strengths, n))


def _of_unit_length(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def at_last_write(heads: Tensor, writes: int) -> Tensor:
    """Return ``[B, H, n T, d]`` of ``[B, H, T, d]``, zero at all but the last write of each token."""
    return by_write(F.pad(heads, ((writes - 1) * heads.shape[-1], 0)), writes)
