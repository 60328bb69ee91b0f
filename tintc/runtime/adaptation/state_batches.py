"""The texts of a state as a batch: some of them, those of several states together, and one state of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.errors import OptionError
from tintc.ir.core import Value
from tintc.ir.simulator.interface.fused_base import FusedWeights, Pending
from tintc.ir.simulator.shared.linear_common import bias_dims
from tintc.runtime.adaptation.state import AdaptedWeights, materialised, state_of


def spread(state: AdaptedWeights, rows: int) -> AdaptedWeights:
    """Return the state of so many rows, of which each example has as many as every other, side by side."""
    count = rows // state.examples
    return select(state, [row // count for row in range(rows)])


def select(state: AdaptedWeights, indices: Sequence[int] | Tensor) -> AdaptedWeights:
    """Return the state of these of its texts, in this order; one may be named several times.

    Raises `OptionError` for what is no list of texts, and for texts that it does not have.
    """
    chosen = torch.as_tensor(indices)
    if chosen.dim() != 1 or not len(chosen) or chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise OptionError(
            "The texts of a state are chosen by their numbers; pass a list of one or more, such as [0, 2]."
        )
    if int(chosen.min()) < 0 or int(chosen.max()) >= state.examples:
        raise OptionError(f"The state has {state.examples} examples; choose from 0 to {state.examples - 1}.")
    if chosen.tolist() == list(range(state.examples)):
        return state
    if state.examples > 1:
        return state.rows(chosen, state.examples)
    return state._with({value: _repeated(value, w, len(chosen)) for value, w in state.weights.items()}, len(chosen))


def _repeated(value: Value, w: FusedWeights, count: int) -> FusedWeights:
    """Return one example's weights for several, without copying any."""

    def each(tensor: Tensor | None, dims: int) -> Tensor | None:
        if tensor is None or (w.pending and tensor.dim() == dims):  # what is stored
            return tensor
        return tensor.reshape(1, *tensor.shape[-dims:]).expand(count, *(-1,) * dims)

    pending = []
    for update in w.pending:
        experts = update.experts
        if experts is not None:
            experts = experts.expand(count, -1)
        pending.append(
            replace(update, dy=update.dy.expand(count, -1, -1), x=update.x.expand(count, -1, -1), experts=experts)
        )
    weight = each(w.weight, len(value.type.dims))
    return FusedWeights(weight, each(w.bias, bias_dims(value.type)), tuple(pending))


def stack(states: Sequence[AdaptedWeights]) -> AdaptedWeights:
    """Return one state of the texts of all these states, one after the other.

    Raises `OptionError` if there are none, or if they belong to different simulators.
    """
    if not states:
        raise OptionError("There is no state to stack; pass at least one.")
    first = state_of(states[0], states[0].sim)
    each = [state_of(state, first.sim) for state in states]
    for state in each:
        state.check_current()
    examples = sum(state.examples for state in each)
    inputs: dict[tuple[int, ...], Tensor] = {}
    weights: dict[Value, FusedWeights] = {}
    for value in first.weights:
        parts = [state.weights[value] for state in each]
        if all(len(w.pending) == 1 for w in parts):
            weights[value] = replace(parts[0], pending=(_stacked([w.pending[0] for w in parts], inputs),), owned=False)
        else:
            weights[value] = _stacked_weights(value, [materialised(w) for w in parts], [s.examples for s in each])
    return first._with(weights, examples).settled()


def _stacked(updates: Sequence[Pending], inputs: dict[tuple[int, ...], Tensor]) -> Pending:
    """Return the updates of several states as one. Shorter ones are filled up with tokens that change nothing.

    inputs: by the inputs of the states, what they became, since layers share them.
    """
    length = max(update.dy.shape[1] for update in updates)
    key = tuple(id(update.x) for update in updates)

    def filled(tensors: Sequence[Tensor]) -> Tensor:
        longest = max(tensor.shape[1] for tensor in tensors)
        return torch.cat([F.pad(tensor, (0, 0, 0, longest - tensor.shape[1])) for tensor in tensors])

    if key not in inputs:
        inputs[key] = filled([update.x for update in updates])
    experts = None
    if updates[0].experts is not None:
        chosen = [update.experts for update in updates if update.experts is not None]
        experts = torch.cat([F.pad(one, (0, length - one.shape[1])) for one in chosen])
    dy = filled([update.dy * update.rate for update in updates])
    return Pending(dy, inputs[key], updates[0].source, updates[0].bias, experts=experts)


def _stacked_weights(value: Value, parts: Sequence[FusedWeights], counts: Sequence[int]) -> FusedWeights:
    """Return weights that are carried out, of so many examples in each part."""

    def each(tensors: Sequence[Tensor | None], dims: int) -> Tensor | None:
        own: list[Tensor] = []
        for tensor, count in zip(tensors, counts, strict=True):
            if tensor is None:
                return None
            if tensor.dim() == dims:
                tensor = tensor[None]
            own.append(tensor.expand(count, *(-1,) * dims))
        return torch.cat(own)

    weight = each([w.weight for w in parts], len(value.type.dims))
    return FusedWeights(weight, each([w.bias for w in parts], bias_dims(value.type)))


def average(state: AdaptedWeights, shares: Sequence[float] | None = None) -> AdaptedWeights:
    """Return the state of one text whose weights are the mean of all texts' weights.

    shares: how much each counts, divided by their sum (None: all alike). Raises `OptionError` unless there is one that
    is not negative for each text.
    """
    given = shares
    if given is None:
        given = [1.0] * state.examples
    numbers = torch.as_tensor(given, dtype=torch.float64)
    total = float(numbers.sum())
    if tuple(numbers.shape) != (state.examples,) or float(numbers.min()) < 0 or not 0 < total < math.inf:
        raise OptionError(
            f"The shares are {shares!r}; pass a number that is not negative for each of {state.examples}."
        )
    numbers = (numbers / total).to(state.sim.device, state.sim.dtype)
    merged: dict[int, Tensor] = {}
    return state._with({value: _mean(value, w, numbers, merged) for value, w in state.weights.items()}, 1).settled()


def _mean(value: Value, w: FusedWeights, shares: Tensor, merged: dict[int, Tensor]) -> FusedWeights:
    """Return the mean of the examples' weights; of pending updates that of all their tokens."""

    def mean(tensor: Tensor | None, dims: int) -> Tensor | None:
        if tensor is None or tensor.dim() == dims:
            return tensor
        return torch.tensordot(shares, tensor, 1)

    pending = []
    for update in w.pending:
        if id(update.x) not in merged:
            merged[id(update.x)] = update.x.flatten(0, 1)[None]
        experts = update.experts
        if experts is not None:
            experts = experts.flatten()[None]
        dy = (update.dy * shares[:, None, None]).flatten(0, 1)[None]
        pending.append(replace(update, dy=dy, x=merged[id(update.x)], experts=experts))
    return FusedWeights(mean(w.weight, len(value.type.dims)), mean(w.bias, bias_dims(value.type)), tuple(pending))
