"""What the two softmax-attention modules share: their heads, which are the auxiliary's own.

The module views the embedding in chunks of head_dim. Slots hold [q | k | v] or [dy | q | k], one slot per tile; a
tile's width is a multiple of head_dim, so head h of the first value is chunk h, and the others follow at multiples of
the pitch. Query head h reads key/value head ``h // group``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from tintc.ir.functions import split_heads
from tintc.ir.layout import Layout
from tintc.ir.simulator.base import SimOp, Storage
from tintc.ir.simulator.fused_base import FusedRun
from tintc.ir.structure import SplitStage, TensorSpec, chunk_map


@dataclass(eq=False, kw_only=True)
class AttentionOp(SimOp):
    """Attributes as in `aux.attention`."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float
    inv_freq: str = ""
    rotary_style: str = ""

    def rotated(self, run: FusedRun, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Query heads ``[B, n_heads, n, d]`` and key heads ``[B, n_kv_heads, n, d]`` at their positions."""
        queries, keys = split_heads(q, self.n_heads), split_heads(k, self.n_kv_heads)
        return run.turn(queries, self.inv_freq, self.rotary_style), run.turn(keys, self.inv_freq, self.rotary_style)

    def stored(self, storage: Storage) -> dict[str, TensorSpec]:
        return {f"rotary.{self.inv_freq}": storage.parameter(self.inv_freq)} if self.inv_freq else {}

    def head_dims(self) -> set[int]:
        return {self.head_dim}

    def slots(self, layout: Layout) -> int:
        return sum(layout.tiles(value.type.width) for value in self.operands)

    def block_name(self, kind: str) -> str:
        """Unlike attentions of one model get modules of their own: the name carries what distinguishes them."""
        shape = f"{self.n_heads}_{self.n_kv_heads}_{self.head_dim}_{self.scale!r}"
        rotary = f"_{self.rotary_style}_{self.inv_freq}" if self.inv_freq else ""
        return f"{kind}_{shape}{rotary}".replace(".", "-")

    def starts(self, layout: Layout) -> list[int]:
        """First chunk (of width head_dim) of every operand."""
        starts, slot = [], 0
        for value in self.operands:
            starts.append(slot * layout.pitch // self.head_dim)
            slot += layout.tiles(value.type.width)
        return starts

    def take(self, layout: Layout, start: int, grouped: bool, factor: float = 1.0) -> SplitStage:
        """Head h receives chunk ``start + h``, or ``start + h // group`` of a value whose heads are shared."""
        group = self.n_heads // self.n_kv_heads if grouped else 1
        entries = {(h, start + h // group): factor for h in range(self.n_heads)}
        return chunk_map(self.chunks(layout), self.head_dim, entries)

    def take_keys(self, layout: Layout, start: int) -> SplitStage:
        """`take` for keys, without a bias: softmax does not see what is added to all keys alike."""
        return replace(self.take(layout, start, grouped=True), bias=False)

    def chunks(self, layout: Layout) -> int:
        return layout.d_sim // self.head_dim
