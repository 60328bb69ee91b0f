"""Shared by the modules of softmax attention: their scores, for the interpreter and in fused execution."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tintc.ir.block_specs import TensorSpec
from tintc.ir.functions import soft_capped, split_heads
from tintc.ir.inputs import Inputs, check_positions
from tintc.ir.scores import attention_probabilities
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.interface.storage import Storage
from tintc.ir.simulator.shared.attention_heads import AttentionHeads

ROWS = 512
"""Queries whose attention probabilities exist at one time in fused execution."""


def stored_name(vector: str) -> str:
    """Return the state-dict name of a vector that scores are made with, whatever it is of."""
    return f"score_vectors.{vector}"


class ScoredRows(NamedTuple):
    """The attention of some queries: which, and how many keys they have.

    weights: probabilities ``[B, n_heads, queries, keys]``; capped: scores after the soft cap, in the same shape, None
    without; seen: which keys each sees, None if plain causal attention is all there is.
    """

    rows: slice
    stop: int
    weights: Tensor
    capped: Tensor | None
    seen: Tensor | None


@dataclass(eq=False, kw_only=True)
class AttentionOp(AttentionHeads):
    """Either module of softmax attention, with the options of `aux.attention`."""

    def probabilities(self, run: Interpretation, q: Tensor, k: Tensor) -> Tensor:
        """Return the attention probabilities ``[B, n_heads, T, T]``, by the definition."""
        vectors = {key: run.tensors[stored_name(name)] for key, name in self.vectors().items()}
        return attention_probabilities(self, q, k, run.inputs.allowed, run.inputs.position_ids, vectors)

    def weights_by_rows(self, run: FusedRun, queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, int, Tensor]]:
        """Yield (queries, number of keys, probabilities ``[B, n_heads, queries, keys]``) of `scored_by_rows`."""
        for block in self.scored_by_rows(run, queries, keys):
            yield block.rows, block.stop, block.weights

    def scored_by_rows(self, run: FusedRun, queries: Tensor, keys: Tensor) -> Iterator[ScoredRows]:
        """Yield the attention of `ROWS` queries at a time.

        No T x T tensor is kept. queries, keys: heads as of `rotated`; the queries are those of the last tokens that
        have keys.
        """
        keys = self.by_query_head(keys)
        count = queries.shape[2]
        length = keys.shape[2]
        mask = run.allowed(count, length, self.window)
        # Tokens before the first query: a continued text asks only for its last tokens.
        before = length - count
        for start in range(0, count, ROWS):
            rows = slice(start, min(start + ROWS, count))
            stop = before + rows.stop
            scores = (queries[:, :, rows] * self.scale) @ keys[:, :, :stop].transpose(-1, -2)
            scores = soft_capped(scores, self.soft_cap)
            capped = scores.clone() if self.soft_cap else None
            if self.slopes:
                scores = scores + run.alibi(self.slopes, scores, slice(before + start, stop))
            if mask is None:
                scores[..., before + start :].add_(run.later(rows.stop - start))
                weights = self.beside_sinks(run, scores).softmax(-1)[..., :stop]
                yield ScoredRows(rows, stop, weights, capped, None)
            else:
                seen = mask[..., rows, :stop]
                scores = scores.masked_fill(~seen, -math.inf)
                weights = self.beside_sinks(run, scores).softmax(-1)[..., :stop].nan_to_num(0.0)
                yield ScoredRows(rows, stop, weights, capped, seen)

    def beside_sinks(self, run: FusedRun, scores: Tensor) -> Tensor:
        """Return the scores ``[B, n_heads, n, m]`` with their heads' sinks, if there are any, after the last key."""
        if not self.sinks:
            return scores
        sinks = run.score_vector(self.sinks).to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
        return torch.cat((scores, sinks), -1)

    def rotated(self, run: FusedRun, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return query heads ``[B, n_heads, n, d]`` and key heads ``[B, n_kv_heads, m, d]`` at their positions.

        The queries are those of the last n of m tokens.
        """
        return self.queries(run, q, k.shape[1] - q.shape[1]), self.keys(run, k)

    @property
    def has_own_scores(self) -> bool:
        """Return True if the fused form has to make the scores itself: PyTorch's kernel has no such options."""
        return bool(self.soft_cap or self.slopes or self.sinks)

    @property
    def score_copies(self) -> int:
        """Return the number of tensors of scores that exist at one time in `weights_by_rows`."""
        if self.slopes or self.sinks:
            return 3
        return 2

    def score_entries(self, length: int) -> int:
        """Return the number of scores of a head that exist at one time, for a text of `length` tokens."""
        return min(length, ROWS) * length

    def queries(self, run: FusedRun, q: Tensor, start: int = 0) -> Tensor:
        """Return query heads ``[B, n_heads, n, d]`` of the tokens from `start` on, rotated, and multiplied by the gain
        and by the scale of their position, if there are any."""
        return self.weighed(run, run.apply_rotary(split_heads(q, self.n_heads), *self.rotation, start), start)

    def weighed(self, run: FusedRun, queries: Tensor, start: int = 0) -> Tensor:
        """Return query heads of the tokens from `start` on times gain and scale of their position, if there are any."""
        if self.gain:
            queries = queries * run.score_vector(self.gain).to(queries.dtype)
        if self.query_scale:
            scales = run.score_vector(self.query_scale)[run.inputs.position_ids[:, start : start + queries.shape[2]]]
            queries = queries * scales.to(queries.dtype)[:, None, :, None]
        return queries

    @property
    def rotation(self) -> tuple[str, str]:
        """Return the name of the rotary frequencies, empty for none, and their style."""
        return self.inv_freq, self.rotary_style

    def keys(self, run: FusedRun, k: Tensor) -> Tensor:
        """Return key heads ``[B, n_kv_heads, m, d]`` of the first m tokens, rotated."""
        return run.apply_rotary(split_heads(k, self.n_kv_heads), *self.rotation)

    def stored(self, storage: Storage) -> dict[str, TensorSpec]:
        return {stored_name(name): storage.parameter(name) for name in self.vectors().values()}

    def check(self, inputs: Inputs, stored: Callable[[str], Tensor]) -> None:
        if self.query_scale:
            check_positions(inputs.position_ids, len(stored(stored_name(self.query_scale))))
