"""Training on a text, and what it leaves: a state, from the stored weights or from those of a state before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from tintc.ir.core import Value
from tintc.ir.inputs import Inputs
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.interface.fused_base import FusedWeights
from tintc.ir.simulator.interface.literal_base import PrefixTiles
from tintc.runtime.adaptation.continuation import AdaptiveSimulator, base_weights
from tintc.runtime.adaptation.fingerprint import WeightsSnapshot
from tintc.runtime.adaptation.pending import Renamed, joined
from tintc.runtime.adaptation.prefill import check_prompt
from tintc.runtime.adaptation.state import AdaptedWeights, materialised
from tintc.runtime.adaptation.state_batches import spread
from tintc.runtime.execution.fused.batches import NO_STARTS, Starts
from tintc.runtime.execution.literal.prefix import unpack_weights
from tintc.runtime.execution.rates import Rates
from tintc.runtime.execution.run import execute_program


def adapt(
    sim: AdaptiveSimulator, inputs: Inputs, rates: Rates | None, executor: str, state: AdaptedWeights | None = None
) -> AdaptedWeights:
    """Return the updated weights of each example, as the executor makes them.

    state: whose weights each example starts from, instead of the stored ones.
    """
    check_prompt(inputs)
    if state is not None:
        state.check_current()
        state.check(sim, inputs.shape[0])
    learnt, _ = learn(sim, inputs, rates, executor, state)
    return learnt


def learn(
    sim: AdaptiveSimulator,
    inputs: Inputs,
    rates: Rates | None,
    executor: str,
    state: AdaptedWeights | None = None,
    outputs: Mapping[str, Value] | None = None,
    consumed: bool = False,
) -> tuple[AdaptedWeights, dict[str, Any]]:
    """Return the updated weights of each example, and the values of the program that `outputs` names.

    state: as in `adapt`, checked; consumed: nobody needs it any more, so that it may be written over.
    """
    snapshot = WeightsSnapshot.of(sim)
    batch, length = inputs.shape
    labels = {f"updated.{value.name}": value for value in sim.continuation.updated}
    program = replace(sim.program, outputs={**labels, **(outputs or {})})
    renamed = Renamed()
    starts = starts_of(sim, state, batch, executor, renamed, consumed)
    results = execute_program(sim, program, inputs, rates, executor, starts)
    if executor == "literal":
        weights = _from_literal(sim, results, labels, batch)
    else:
        weights = {value: results[label] for label, value in labels.items()}
    weights = joined(weights, renamed, inputs.train.reshape(-1, length).any(0))
    learnt = AdaptedWeights(sim, weights, batch, snapshot).settled()
    return learnt, {label: results[label] for label in outputs or ()}


def starts_of(
    sim: AdaptiveSimulator,
    state: AdaptedWeights | None,
    batch: int,
    executor: str,
    renamed: Renamed,
    consumed: bool = False,
) -> Starts:
    """Return a state's weights as a run of so many texts starts from them; none for no state.

    renamed: is given the inputs of its pending updates; consumed: as in `learn`.
    """
    if state is None:
        return NO_STARTS
    starts: dict[Value, FusedWeights] = {}
    weights = spread(state, batch).weights
    for value, stored in _stored_values(sim).items():
        w = replace(weights[value], owned=consumed and weights[value].owned)
        if executor == "literal":
            w = materialised(w)
        starts[stored] = renamed.away(w)
    return starts


def _stored_values(sim: AdaptiveSimulator) -> dict[Value, Value]:
    """Return the value of the stored weights that each of the updated weights begins as."""
    stored = {op.stored_weight(): op.results[0] for op in sim.program.ops if isinstance(op, SimOp)}
    return {value: stored[layer] for value, layer in sim.continuation.updated.items()}


def _from_literal(
    sim: AdaptiveSimulator, results: Mapping[str, PrefixTiles], labels: Mapping[str, Value], batch: int
) -> dict[Value, FusedWeights]:
    """Return the weights that literal modules have made, read off their prefixes; parts that these do not hold are as
    they are stored."""
    stored = base_weights(sim)
    weights = {}
    for label, value in labels.items():
        each = [unpack_weights(results[label], value.type, sim.layout, row) for row in range(batch)]
        parts = {part: torch.stack([example[part] for example in each]) for part in each[0]}
        gain = parts.get("gain", stored[value].weight)
        weights[value] = FusedWeights(parts.get("weight", gain), parts.get("bias", stored[value].bias))
    return weights
