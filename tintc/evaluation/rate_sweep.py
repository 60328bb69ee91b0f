"""Several learning rates on one text, for little more than one.

What one step of descent subtracts is linear in the rate. So the first pass and the backward pass are run once, at rate
1, and only the last pass is run for each rate, with weights between those before and those after: ``W + r (W' - W)``.
Several steps are not linear, and literal execution makes the updates of its modules: there every rate is a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tintc.ir.core import Value
from tintc.ir.inputs import Inputs
from tintc.ir.simulator.interface.fused_base import FusedWeights
from tintc.runtime.adaptation.continuation import base_weights
from tintc.runtime.adaptation.prefill import predict
from tintc.runtime.execution.fused.batches import run_together
from tintc.runtime.execution.fused.planner import WRITE_COST
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.precision import in_its_own_dtype

if TYPE_CHECKING:
    from tintc.runtime.model.causal_lm import TintForCausalLM

Score = Callable[[Tensor], float]


@torch.no_grad()
@in_its_own_dtype
def sweep(
    sim: TintForCausalLM, ids: Tensor, train_mask: Tensor, rates: Sequence[float], score: Score
) -> tuple[float, list[float]]:
    """Return what `score` says of the logits ``[1, T, V]`` before the update, and after the update at each rate.

    ids ``[1, T]``; train_mask ``[1, T]`` or ``[N, 1, T]``.
    """
    if _is_shared(sim):
        return _shared(sim, ids, train_mask, rates, score)
    inputs = sim.resolve(ids, train_mask)
    outputs = ("logits", "logits_before")
    results = sim.execute(inputs, rates[0], outputs, None)
    before = score(results["logits_before"])
    after = [score(results["logits"])]
    for rate in rates[1:]:
        after.append(score(sim.execute(inputs, rate, outputs[:1], None)["logits"]))
    return before, after


def _is_shared(sim: TintForCausalLM) -> bool:
    """Return True if one backward pass serves all rates. Captures and edits are of whole runs."""
    watched = sim._captures or sim._edited
    return sim.program.attributes["n_steps"] == 1 and not watched and sim.choose_executor() == "fused"


def _shared(
    sim: TintForCausalLM, ids: Tensor, train_mask: Tensor, rates: Sequence[float], score: Score
) -> tuple[float, list[float]]:
    inputs = sim.resolve(ids, train_mask)
    outputs = {"logits_before": sim.program.outputs["logits_before"]}
    results = _at_rate_1(sim, inputs, outputs)
    before = score(results.pop("logits_before"))
    states = (_state(sim, results, rate) for rate in rates)
    return before, [score(predict(sim, ids, None, None, state, None, 0)) for state in states]


@torch.no_grad()
def states_at(
    sim: TintForCausalLM, prompt: Mapping[str, Any], rates: Sequence[float], reads: int | None = None
) -> Iterator[AdaptedState]:
    """Yield the weights after training on one text with each of the rates, for little more than one where that can be.

    prompt: arguments of `sim.adapt`, by name, with ``input_ids [1, T]``. reads: how many tokens each of the weights
    will read (None: many); for few of them it is cheaper not to write out what was learnt.
    """
    if not _is_shared(sim):
        for rate in rates:
            yield sim.adapt(**prompt, inner_lr=rate)
        return
    inputs = sim.resolve(**prompt)
    if reads is not None and _stays_pending(sim, int(inputs.train.sum()), reads):
        results = _at_rate_1(sim, inputs, {}, update="lazy")
        for rate in rates:
            yield AdaptedState(sim, _weights(sim, results, rate), 1)
        return
    results = _at_rate_1(sim, inputs, {})
    for rate in rates:
        yield _state(sim, results, rate)


def _stays_pending(sim: TintForCausalLM, trained: int, reads: int) -> bool:
    """Return True if reading so many tokens with pending updates costs less than carrying these out."""
    shapes = [value.type.dims for value in sim.continuation.updated if value.type.kind == "linear"]
    pending = sum(reads * trained * (dout + din) for dout, din in shapes)
    return pending < sum((trained + WRITE_COST) * dout * din for dout, din in shapes)


def unchanged(sim: TintForCausalLM) -> AdaptedState:
    """Return the weights that any training starts from."""
    return AdaptedState(sim, base_weights(sim), 1)


def _at_rate_1(
    sim: TintForCausalLM, inputs: Inputs, outputs: Mapping[str, Value], update: str | None = None
) -> dict[str, Any]:
    """Return these outputs, and the weights after one step at rate 1 by their label in `_labels`. update: how they are
    kept, as for `run_together`."""
    program = replace(sim.program, outputs={**outputs, **_labels(sim)})
    return run_together(sim, program, inputs, sim.resolve_rates(1.0, 1), update=update)


def _labels(sim: TintForCausalLM) -> dict[str, Value]:
    return {f"updated.{value.name}": value for value in sim.continuation.updated}


def _state(sim: TintForCausalLM, results: Mapping[str, Any], rate: float) -> AdaptedState:
    """Return the weights at a rate, from those at rate 1."""
    return AdaptedState(sim, _weights(sim, results, rate), 1).settled()


def _weights(sim: TintForCausalLM, results: Mapping[str, Any], rate: float) -> dict[Value, FusedWeights]:
    base = base_weights(sim)
    return {value: _between(base[value], results[label], rate) for label, value in _labels(sim).items()}


def _between(base: FusedWeights, updated: FusedWeights, rate: float) -> FusedWeights:
    """Return the weights at a rate, from those without update and those at rate 1."""

    def part(start: Tensor | None, end: Tensor | None) -> Tensor | None:
        if start is None or end is None:
            return end
        return torch.lerp(start.expand_as(end), end, rate)

    pending = tuple(replace(update, rate=update.rate * rate) for update in updated.pending)
    weight = updated.weight
    if not pending:
        weight = part(base.weight, updated.weight)
    return FusedWeights(weight, part(base.bias, updated.bias), pending)
