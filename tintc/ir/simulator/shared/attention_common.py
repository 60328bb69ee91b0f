"""Shared by the two softmax-attention modules: their heads, which are the auxiliary's own.

The module views the embedding in chunks of head_dim. Slots hold [q | k | v] or [dy | q | k], one slot per tile; a
tile's width is a multiple of head_dim, so head h of the first value is chunk h, and the others follow at multiples of
the pitch. Query head h reads key/value head ``h // group``.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tintc.ir.block_specs import SplitStage, TensorSpec
from tintc.ir.core import Value
from tintc.ir.functions import soft_capped, split_heads
from tintc.ir.inputs import Inputs, check_positions
from tintc.ir.layout import Layout
from tintc.ir.routing import Move, route
from tintc.ir.scores import ScoreOptions, attention_probabilities
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.interface.storage import Storage
from tintc.ir.structure import chunk_map

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
class AttentionOp(ScoreOptions, SimOp):
    """Either module of softmax attention, with the options of `aux.attention`."""

    @property
    def width(self) -> int:
        """Return the width of a TinT head, which holds one head of q, k or v."""
        return max(self.head_dim, self.value_width)

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

    def head_dims(self) -> set[int]:
        return {self.width}

    def slots(self, layout: Layout) -> int:
        read = sum(layout.tiles(value.type.width) for value in self.operands)
        return max(read, layout.tiles(self.n_heads * self.value_width))

    def block_name(self, kind: str) -> str:
        """Return the block's name, which carries all that distinguishes attentions of one model: unlike ones get
        modules of their own."""
        slopes = zlib.crc32(repr(self.slopes).encode())
        options = (
            (self.inv_freq, f"{self.rotary_style}_{self.inv_freq}"),
            (self.window, f"window{self.window}"),
            (self.soft_cap, f"cap{self.soft_cap!r}"),
            (self.slopes, f"alibi{slopes:08x}"),
            (self.gain, self.gain),
            (self.value_dim, f"values{self.value_dim}"),
            (self.query_scale, self.query_scale),
            (self.sinks, self.sinks),
        )
        shape = f"{self.n_heads}_{self.n_kv_heads}_{self.head_dim}_{self.scale!r}"
        return "_".join([kind, shape, *(name for option, name in options if option)]).replace(".", "-")

    def spec_options(self) -> dict[str, Any]:
        """Return how an `AttentionSpec` makes scores of q and k, as its fields. Windows are masks there."""
        rotary = {"vectors": self.vectors(), "rotary_style": self.rotary_style}
        return rotary | {"soft_cap": self.soft_cap, "slopes": self.slopes}

    def starts(self, layout: Layout, values: Sequence[Value] | None = None) -> list[int]:
        """Return the first chunk of every operand, or of these values, side by side."""
        starts = []
        slot = 0
        for value in values or self.operands:
            starts.append(slot * layout.pitch // self.width)
            slot += layout.tiles(value.type.width)
        return starts

    def take(self, layout: Layout, start: int, dim: int, grouped: bool, factor: float = 1.0) -> tuple[SplitStage, ...]:
        """Return stages that bring heads of the value that begins at chunk `start` to the TinT heads.

        Claim: chunk h < n_heads becomes `factor` times head h of the value (head ``h // group`` if it is shared),
        followed by zeros if the head is narrower than a chunk; the other chunks become zero.

        dim is the width of the value's heads, which stand side by side: number i of head m is number ``m * dim + i``,
        counted from chunk `start`. Heads as wide as a chunk are chunks ``start + m``, and one dimension-wise operation
        copies them. Others are moved number by number: number i of head m to column i of all chunks h that read head m.
        These moves start at distinct places, and end at distinct places because a chunk reads one head, which is what
        `route` asks for; a dimension-wise operation multiplies by `factor`. QED.
        """
        group = self._group(grouped)
        if dim == self.width:
            entries = {(h, start + h // group): factor for h in range(self.n_heads)}
            return (chunk_map(self.chunks(layout), self.width, entries),)
        heads = [tuple(range(h * group, (h + 1) * group)) for h in range(self.n_heads // group)]
        moves = [Move((chunk,), column, heads[h], i) for h, i, chunk, column in self._places(len(heads), dim, start)]
        stages = route(self.chunks(layout), self.width, moves)
        if factor == 1:
            return stages
        scale = chunk_map(self.chunks(layout), self.width, {(h, h): factor for h in range(self.n_heads)})
        return (*stages, scale)

    def take_keys(self, layout: Layout, start: int) -> tuple[SplitStage, ...]:
        """Return `take` for keys, without the last bias: what is added to all keys alike adds the same to all scores of
        a query, and softmax does not see it."""
        *stages, last = self.take(layout, start, self.head_dim, grouped=True)
        return (*stages, replace(last, bias=False))

    def give(self, layout: Layout, grouped: bool, dim: int) -> tuple[SplitStage, ...]:
        """Return stages that bring the heads' results to the first slots, head after head.

        Claim: number i of head m, of width `dim`, stands at number ``m * dim + i`` counted from chunk 0; where
        `grouped`, m counts value heads, and the results of the query heads that share one are added.

        It is `take` reversed: the same places, sources and targets exchanged, and several sources of a move are added.
        Chunks from n_heads on are no source of anything. QED.
        """
        group = self._group(grouped)
        if dim == self.width:
            return (chunk_map(self.chunks(layout), self.width, {(h // group, h): 1.0 for h in range(self.n_heads)}),)
        heads = [tuple(range(h * group, (h + 1) * group)) for h in range(self.n_heads // group)]
        places = self._places(len(heads), dim, 0)
        return route(
            self.chunks(layout), self.width, [Move(heads[h], i, (chunk,), column) for h, i, chunk, column in places]
        )

    def _group(self, grouped: bool) -> int:
        """Return the number of query heads that share a head: those of a group if `grouped`, else 1."""
        if not grouped:
            return 1
        return self.n_heads // self.n_kv_heads

    def _places(self, count: int, dim: int, start: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (head, coordinate, chunk, column) of `count` heads of width `dim`, side by side from chunk `start`
        on."""
        for place in range(count * dim):
            h, i = divmod(place, dim)
            chunk, column = divmod(start * self.width + place, self.width)
            yield h, i, chunk, column

    def chunks(self, layout: Layout) -> int:
        """Return how many chunks of a head's width an embedding has: the module's heads."""
        return layout.d_sim // self.width
