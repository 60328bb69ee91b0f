"""Shared by the modules of softmax attention: their heads, which are the auxiliary's own, in the literal form.

The module views the embedding in chunks of head_dim. Slots hold [q | k | v] or [dy | q | k], one slot per tile; a
tile's width is a multiple of head_dim, so head h of the first value is chunk h, and the others follow at multiples of
the pitch. Query head h reads key/value head ``h // group``.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tintc.ir.block_specs import SplitStage
from tintc.ir.core import Value
from tintc.ir.layout import Layout
from tintc.ir.routing import Move, route
from tintc.ir.scores import ScoreOptions
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.structure import chunk_map


@dataclass(eq=False, kw_only=True)
class AttentionHeads(ScoreOptions, SimOp):
    """A module of softmax attention, as the transformer that the embedding's heads are brought to."""

    @property
    def width(self) -> int:
        """Return the width of a TinT head, which holds one head of q, k or v."""
        return max(self.head_dim, self.value_width)

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
