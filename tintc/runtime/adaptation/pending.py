"""Pending updates that a state carries on: joined into one for each layer, without what was not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tintc.ir.core import Value
from tintc.ir.simulator.interface.fused_base import FusedWeights, Pending


class Renamed:
    """The inputs of updates that a state brings into a run, under names of their own there.

    A run keeps products by the value that an input is in its program, and its own updates have the same values.
    """

    def __init__(self) -> None:
        self._names: dict[Value, Value] = {}
        self._before: dict[Value, Value] = {}

    def away(self, w: FusedWeights) -> FusedWeights:
        """Return weights whose updates' inputs have other names than a program's values."""
        return replace(w, pending=tuple(replace(update, source=self._other(update.source)) for update in w.pending))

    def back(self, update: Pending) -> Pending:
        """Return an update whose input is called as the program calls it."""
        return replace(update, source=self._before.get(update.source, update.source))

    def is_away(self, update: Pending) -> bool:
        """Return True for an update that was brought into the run."""
        return update.source in self._before

    def _other(self, source: Value) -> Value:
        if source not in self._names:
            other = Value(f"{source.name}.state", source.type)
            self._names[source] = other
            self._before[other] = source
        return self._names[source]


def joined(weights: Mapping[Value, FusedWeights], renamed: Renamed, trained: Tensor) -> dict[Value, FusedWeights]:
    """Return weights with at most one pending update each, of all tokens that were trained on.

    renamed: the updates among them that are of earlier runs; trained ``[T]`` bool: the tokens of this run that some
    example, in some step, was trained on. Layers that shared an input do so afterwards.
    """
    inputs: dict[tuple[int, ...], Tensor] = {}
    cut: dict[int, Tensor] = {}

    def columns(tensor: Tensor) -> Tensor:
        """Return a tensor ``[B, t, ...]`` of the tokens that were trained on."""
        return tensor[:, trained[: tensor.shape[1]].to(tensor.device)]

    def of_this_run(update: Pending) -> Pending:
        if update.experts is not None:  # several vectors a token; those of other tokens have dy = 0
            return update
        if renamed.is_away(update) or bool(trained[: update.x.shape[1]].all()):
            return update
        key = id(update.x)
        if key not in cut:
            cut[key] = columns(update.x)
        return replace(update, dy=columns(update.dy), x=cut[key])

    def one(updates: list[Pending]) -> Pending:
        last = renamed.back(updates[-1])
        if len(updates) == 1:
            return last
        key = tuple(id(update.x) for update in updates)
        if key not in inputs:
            inputs[key] = torch.cat([update.x for update in updates], 1)
        experts = None
        if last.experts is not None:
            experts = torch.cat([update.experts for update in updates if update.experts is not None], 1)
        dy = torch.cat([update.dy * update.rate for update in updates], 1)
        return Pending(dy, inputs[key], last.source, last.bias, experts=experts)

    results: dict[Value, FusedWeights] = {}
    for value, w in weights.items():
        if w.pending:
            w = replace(w, pending=(one([*map(of_this_run, w.pending)]),))
        results[value] = w
    return results
