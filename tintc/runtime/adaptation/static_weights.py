"""The weights of a state in memory that stays, so that what was recorded with them runs with those of other states."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import torch
from torch import Tensor

from tintc.ir.simulator.interface.fused_base import FusedWeights, Pending
from tintc.runtime.adaptation.continuation import base_weights, stored_weights
from tintc.runtime.adaptation.state import AdaptedWeights


class StaticWeights:
    """Room for the weights of states of one kind: the same updates carried out or pending, of no more tokens.

    Pending updates of fewer tokens are filled up with tokens that change nothing, and their rates are multiplied into
    dY. values: everything that a continuation reads.
    """

    def __init__(self, state: AdaptedWeights):
        """Make room for what is like `state`, and copy it."""
        self.examples = state.examples
        self._kind = _kind(state)
        self._longest = _lengths(state)
        self._inputs: dict[int, Tensor] = {}
        base = base_weights(state.sim)
        self._own = {value: self._like(w, base[value]) for value, w in state.weights.items()}
        self.values = stored_weights(state.sim) | self._own
        self.load(state)

    def fits(self, state: AdaptedWeights) -> bool:
        """Return whether there is room for a state's weights."""
        if _kind(state) != self._kind:
            return False
        return all(now <= most for now, most in zip(_lengths(state), self._longest, strict=True))

    def load(self, state: AdaptedWeights) -> None:
        """Copy the weights of a state that fits."""
        base = base_weights(state.sim)
        done: set[int] = set()
        for value, w in state.weights.items():
            own = self._own[value]
            for mine, given, stored in (
                (own.weight, w.weight, base[value].weight),
                (own.bias, w.bias, base[value].bias),
            ):
                if mine is not None and given is not None and not _is_stored(given, stored):
                    mine.copy_(given)
            for place, given in zip(own.pending, w.pending, strict=True):
                _fill(place.dy, given.dy * given.rate)
                if id(place.x) not in done:
                    _fill(place.x, given.x)
                    done.add(id(place.x))
                if place.experts is not None and given.experts is not None:
                    _fill(place.experts, given.experts)

    def _like(self, w: FusedWeights, base: FusedWeights) -> FusedWeights:
        pending = tuple(self._room(update) for update in w.pending)
        return FusedWeights(_place(w.weight, base.weight), _place(w.bias, base.bias), pending)

    def _room(self, update: Pending) -> Pending:
        """Return room for an update; layers that share an input share it here."""
        x = self._inputs.setdefault(id(update.x), torch.empty_like(update.x, memory_format=torch.contiguous_format))
        experts = update.experts
        if experts is not None:
            experts = torch.empty_like(experts, memory_format=torch.contiguous_format)
        return replace(update, dy=torch.empty_like(update.dy), x=x, rate=1.0, experts=experts)


def _fill(room: Tensor, given: Tensor) -> None:
    """Copy ``[B, t, ...]`` into room for as many tokens or more; zeros fill it up."""
    count = given.shape[1]
    room[:, :count].copy_(given)
    if count < room.shape[1]:
        room[:, count:] = 0


def _place(tensor: Tensor | None, stored: Tensor | None) -> Tensor | None:
    """Return room for a tensor; the stored one itself if it is that."""
    if tensor is None or _is_stored(tensor, stored):
        return tensor
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _is_stored(tensor: Tensor, stored: Tensor | None) -> bool:
    """Return whether a tensor is a view of the same numbers as the stored one."""
    if stored is None or tensor.shape != stored.shape or tensor.storage_offset() != stored.storage_offset():
        return False
    return tensor.untyped_storage()._cdata == stored.untyped_storage()._cdata


def _kind(state: AdaptedWeights) -> Hashable:
    """Return everything that a recorded run depends on but lengths and numbers."""
    base = base_weights(state.sim)
    inputs: dict[int, int] = {}
    kinds: list[Hashable] = [state.examples]
    for value, w in state.weights.items():
        parts = [_part(w.weight, base[value].weight), _part(w.bias, base[value].bias)]
        updates = tuple(_update(update, inputs) for update in w.pending)
        kinds.append((value, *parts, updates))
    return tuple(kinds)


def _part(tensor: Tensor | None, stored: Tensor | None) -> Hashable:
    if tensor is None:
        return None
    return tensor.shape, tensor.dtype, _is_stored(tensor, stored)


def _update(update: Pending, inputs: dict[int, int]) -> Hashable:
    """Return the kind of an update; inputs: numbers of those that were met before."""
    each = 1
    if update.experts is not None:
        each = update.dy.shape[1] // update.x.shape[1]
    number = inputs.setdefault(id(update.x), len(inputs))
    return update.source, update.bias, update.dy.dtype, update.dy.shape[0], number, each


def _lengths(state: AdaptedWeights) -> list[int]:
    """Return the tokens of every pending update."""
    return [update.x.shape[1] for w in state.weights.values() for update in w.pending]
