"""Recorded decoding: the next token of every row of a batch, by one graph for every token, text and state.

Keys and values stand in memory for as many tokens as a text may have, the new token's are written at their place, and a
mask hides what lies beyond it, as transformers' own static cache has it. A text's cache keeps what it had: its tensors
become views of that memory, and whoever crops, reorders or copies a cache does so as ever; what is no longer the view
that was left there is copied in again.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tintc.ir.functions import alibi
from tintc.ir.inputs import Inputs
from tintc.runtime.adaptation.cache import TintCache
from tintc.runtime.adaptation.continuation import AdaptiveSimulator
from tintc.runtime.adaptation.continued_run import ContinuedRun
from tintc.runtime.adaptation.state import AdaptedWeights
from tintc.runtime.adaptation.static_weights import StaticWeights
from tintc.runtime.execution.fused.graphs import surroundings


class StaticRun(ContinuedRun):
    """The continuation on one new token of each row, at a place that the device alone knows.

    place ``[1]``: the token's among all; positions, seen ``[B, m]``: of room for m tokens, of which those after it are
    none yet.
    """

    def __init__(
        self, sim: AdaptiveSimulator, tokens: Inputs, positions: Tensor, seen: Tensor, place: Tensor, own: int
    ):
        super().__init__(sim, tokens, positions, examples=own)
        self.known = seen[:, None]
        self.place = place

    def allowed(self, queries: int, keys: int, window: int = 0) -> Tensor:
        if window not in self._masks:
            every = torch.arange(keys, device=self.positions.device)
            mask = every <= self.place
            if window:
                mask = mask & (every > self.place - window)
            self._masks[window] = (mask & self.known)[:, None]
        return self._masks[window]

    def alibi(self, slopes: tuple[float, ...], scores: Tensor, rows: slice) -> Tensor:
        return alibi(slopes, self.inputs.position_ids, self.positions, scores)


class _Room:
    """Room for the keys and values of one op, which a run updates as it does a cache."""

    def __init__(self, layer: Any, tokens: int, place: Tensor):
        self.keys, self.values = (
            torch.zeros(*kept.shape[:2], tokens, kept.shape[3], dtype=kept.dtype, device=kept.device)
            for kept in (layer.keys, layer.values)
        )
        self.place = place

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self.place, keys)
        self.values.index_copy_(2, self.place, values)
        return self.keys, self.values

    def load(self, layer: Any, count: int) -> None:
        """Copy what a layer of a cache has of so many tokens."""
        for room, kept in ((self.keys, layer.keys), (self.values, layer.values)):
            room[:, :, :count].copy_(kept)
            room[:, :, count:] = 0  # whatever stood there is not multiplied by zero, but gone

    def lend(self, layer: Any, count: int) -> None:
        """Leave a layer views of that many tokens."""
        layer.keys = self.keys[:, :, :count]
        layer.values = self.values[:, :, :count]

    def holds(self, layer: Any, count: int) -> bool:
        """Return whether a layer has what `lend` has left it."""
        same = layer.keys.data_ptr() == self.keys.data_ptr() and layer.values.data_ptr() == self.values.data_ptr()
        return same and layer.keys.shape[2] == count

    def part(self, layer: Any) -> None:
        """Give a layer memory of its own in place of views."""
        if layer.keys is not None and layer.keys.data_ptr() == self.keys.data_ptr():
            layer.keys = layer.keys.clone()
            layer.values = layer.values.clone()


class _StateRoom:
    """Room for the state that one op carries: the run sets another, which is copied."""

    def __init__(self, layer: Any):
        self._state = torch.empty_like(layer.state)

    @property
    def state(self) -> Tensor:
        return self._state

    @state.setter
    def state(self, after: Tensor) -> None:
        self._state.copy_(after)

    def load(self, layer: Any, count: int) -> None:
        self._state.copy_(layer.state)

    def lend(self, layer: Any, count: int) -> None:
        layer.state = self._state

    def holds(self, layer: Any, count: int) -> bool:
        return layer.state is self._state

    def part(self, layer: Any) -> None:
        if layer.state is self._state:
            layer.state = layer.state.clone()


class DecodingGraph:
    """The recorded step of so many rows, with weights of one kind, of texts of at most so many tokens."""

    def __init__(self, sim: AdaptiveSimulator, state: AdaptedWeights, cache: TintCache, longest: int):
        """Record it. state, cache: of any such texts, as they are after a prompt."""
        assert cache.positions is not None
        rows = cache.positions.shape[0]
        device = sim.device
        self.longest = longest
        self.rows = rows
        self.surroundings = surroundings()
        self._owner: weakref.ref[TintCache] | None = None
        self._state: weakref.ref[AdaptedWeights] | None = None
        self._count = -1
        with torch.inference_mode(False), torch.no_grad():
            self._weights = StaticWeights(state)
            self._place = torch.zeros(1, dtype=torch.long, device=device)
            self._positions = torch.zeros(rows, longest, dtype=torch.long, device=device)
            self._seen = torch.ones(rows, longest, dtype=torch.bool, device=device)
            ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
            one = torch.ones(rows, 1, dtype=torch.bool, device=device)
            tokens = Inputs(ids, ids.clone(), one[:, None], ~one, ~one)
            self._tokens = tokens.knowing(plain=True, only_padding=True)
            self._layers: list[Any] = [self._room(layer) for layer in cache.layers]
            self._store: Any = SimpleNamespace(layers=self._layers, update=self._update)
            self._recording = sim.graphs.record(sim, lambda: self.run(sim))

    def _room(self, layer: Any) -> _Room | _StateRoom:
        if hasattr(layer, "state"):
            return _StateRoom(layer)
        return _Room(layer, self.longest, self._place)

    def _pairs(self, cache: TintCache) -> Iterator[tuple[Any, Any]]:
        """Yield each room with the layer of a cache that it is for."""
        return zip(self._layers, cache.layers, strict=True)

    def _update(self, keys: Tensor, values: Tensor, place: int) -> tuple[Tensor, Tensor]:
        return self._layers[place].update(keys, values)

    def run(self, sim: AdaptiveSimulator) -> Tensor:
        """Return the logits ``[B, 1, V]`` of the tokens in its buffers: what is recorded."""
        run = StaticRun(sim, self._tokens, self._positions, self._seen, self._place, self._weights.examples)
        return run.run(self._weights.values, self._store)

    def serves(self, tokens: Inputs, state: AdaptedWeights, cache: TintCache) -> bool:
        """Return whether it may predict from these tokens, which the cache has the positions of, but no more yet."""
        assert cache.positions is not None
        rows, length = cache.positions.shape
        if tokens.shape != (self.rows, 1) or rows != self.rows or not 1 < length <= self.longest or not tokens.plain:
            return False
        known = self._state is not None and self._state() is state
        return self.surroundings == surroundings() and (known or self._weights.fits(state))

    def step(self, tokens: Inputs, state: AdaptedWeights, cache: TintCache) -> Tensor:
        """Return the logits ``[B, 1, V]`` of tokens that it serves; the cache goes on from them."""
        assert cache.positions is not None
        before = cache.positions.shape[1] - 1
        with torch.no_grad():
            if self._state is None or self._state() is not state:
                self._weights.load(state)
                self._state = weakref.ref(state)
            if not self._has(cache, before):
                self._load(cache, before)
            self._tokens.input_ids.copy_(tokens.input_ids)
            self._tokens.position_ids.copy_(tokens.position_ids)
            self._positions[:, before : before + 1].copy_(tokens.position_ids)
            self._place.fill_(before)
            self._recording.replay()
            self._count = before + 1
            for room, layer in self._pairs(cache):
                room.lend(layer, self._count)
            cache.lent = True
            return self._recording.results.clone()

    def _has(self, cache: TintCache, count: int) -> bool:
        """Return whether its buffers hold what a cache has read."""
        if self._owner is None or self._owner() is not cache or self._count != count:
            return False
        return all(room.holds(layer, count) for room, layer in self._pairs(cache))

    def _load(self, cache: TintCache, count: int) -> None:
        """Copy what a cache has read, once the one before has got its own memory back."""
        self.release()
        assert cache.positions is not None
        for room, layer in self._pairs(cache):
            room.load(layer, count)
        self._positions[:, :count].copy_(cache.positions[:, :count])
        self._seen.fill_(True)
        if cache.valid is not None:
            self._seen[:, :count].copy_(cache.valid[:, :count])
        self._owner = weakref.ref(cache)

    def release(self) -> None:
        """Give the cache whose tensors are views of the buffers copies of its own."""
        owner = None
        if self._owner is not None:
            owner = self._owner()
        if owner is not None:
            for room, layer in self._pairs(owner):
                room.part(layer)
            owner.lent = False
        self._owner = None


def replay_step(
    sim: AdaptiveSimulator, tokens: Inputs, state: AdaptedWeights, cache: TintCache | None
) -> Tensor | None:
    """Return the logits ``[B, 1, V]`` of new tokens by a graph; None if there is none for them."""
    if cache is None:
        return None
    for graph in sim.graphs.of_kind(sim, DecodingGraph):
        if graph.serves(tokens, state, cache):
            return graph.step(tokens, state, cache)
    return None
