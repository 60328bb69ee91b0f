"""A module of the simulator as PyTorch has it, and the memory that modules read and write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tintc.ir.core import Value
from tintc.ir.layout import Layout
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.interface.literal_base import (
    Applied,
    ExpertTiles,
    PrefixTiles,
    RoutedTiles,
    Tiles,
)
from tintc.runtime.execution.literal.attention import TintAttention
from tintc.runtime.execution.literal.blocks import PositionGate
from tintc.runtime.execution.simulator import Simulator


class Caller(Protocol):
    """What a module reads of the run that calls it. applied: a list that its results are kept in; None: nowhere."""

    model: Simulator
    layout: Layout
    positions: Tensor
    token_positions: Tensor
    applied: list[Applied] | None

    def prefix_mask(self) -> Tensor: ...


class SimModule(nn.Module):
    """One module of the simulator: an op of the program, applying structural blocks that others may share.

    Called once for every block the op applies (a layer of several tiles applies its attention once per tile); a hook
    sees ``[B, K + T, D_sim]`` go in and come out.
    """

    def __init__(self, op: SimOp, blocks: Mapping[str, str]):
        """Keep the op. blocks: the built block's name, for every name that the op's literal form gives one."""
        super().__init__()
        self.op = op
        self.blocks = blocks

    def forward(
        self, e: Tensor, block: str, executor: Caller, mask: Tensor | None, rate: Tensor | float | None
    ) -> Tensor:
        module, gate = executor.model.block(self.blocks[block])
        shown: list[Tensor] = []
        if isinstance(module, TintAttention):
            if mask is None and module.kind == "sink":
                mask = executor.prefix_mask()
            keep = self._keep_scores(executor, shown)
            new = module(e, executor.positions, mask, executor.token_positions, keep)
        else:
            new = module(e)
        if executor.applied is not None:
            passing = new
            if isinstance(gate, PositionGate):
                passing = gate.taken(new, executor.positions)
            executor.applied.append(Applied(passing, rate, next(iter(shown), None)))
        if isinstance(rate, Tensor):
            rate = rate.to(new.dtype).reshape(-1, 1, 1)
        if rate is not None:
            new = new * rate
        if gate is None:
            return new
        return gate(e, new, executor.positions)

    def _keep_scores(self, executor: Caller, shown: list[Tensor]) -> Callable[[Tensor], Tensor] | None:
        """Return the function that keeps scores in `shown`; None if nobody wants to see any."""
        if executor.applied is None:
            return None
        part = self.op.shown_scores(executor.layout)
        if part is None:
            return None
        return partial(_kept, part, shown)

    def extra_repr(self) -> str:
        return self.op.opname


def _kept(part: tuple[slice, ...], shown: list[Tensor], scores: Tensor) -> Tensor:
    """Keep a part of the scores to be shown; return the scores to go on with.

    These read that very part where autograd records it, so that gradients reach it.
    """
    shown.append(scores[part])
    if not torch.is_grad_enabled():
        return scores
    scores = scores.clone()
    scores[part] = shown[0]
    return scores


def unchanged(e: Tensor) -> Tensor:
    """Return an embedding whose prefixes hold zeros, which is what they hold before anything is put there."""
    return e


class Memory:
    """The table of saved embeddings, by the slots that the compiler allocated, and weights as they are handed on."""

    def __init__(self) -> None:
        self.weights: dict[Value, PrefixTiles | ExpertTiles] = {}
        self.numbers: dict[Value, Tiles] = {}
        self._tiles: dict[int, Tensor] = {}
        self._slots: dict[Value, tuple[int, ...]] = {}

    def read(self, value: Value) -> Any:
        """Return weights, or the tiles of a token value, or of each expert's, that its slots hold now."""
        if value in self.weights:
            return self.weights[value]
        if value in self.numbers:
            return self.numbers[value]
        tiles = [self._tiles[slot] for slot in self._slots[value]]
        if value.type.kind != "routed":
            return tiles
        count = len(tiles) // value.type.dims[0]
        return [tiles[start : start + count] for start in range(0, len(tiles), count)]

    def write(self, value: Value, slots: tuple[int, ...], tiles: Tiles) -> None:
        """Put the tiles of a token value into its slots."""
        self._slots[value] = slots
        self._tiles.update(zip(slots, tiles, strict=True))

    def write_routed(self, value: Value, slots: tuple[int, ...], experts: RoutedTiles) -> None:
        """Put the tiles of each expert's vectors into the slots from the one that is named on."""
        tiles = [tile for of_expert in experts for tile in of_expert]
        (first,) = slots
        self.write(value, tuple(range(first, first + len(tiles))), tiles)
