"""Adapting once and predicting on: what a forward pass with a cache, a state, or both, does in fused execution."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tintc.errors import InputError
from tintc.ir.inputs import Inputs, check_ids, check_tensor, matching, resolve_inputs
from tintc.runtime.adaptation.cache import TintCache
from tintc.runtime.adaptation.continuation import AdaptiveSimulator, remembered
from tintc.runtime.adaptation.continued_run import ContinuedRun
from tintc.runtime.adaptation.decoding_graph import replay_step
from tintc.runtime.adaptation.fingerprint import WeightsSnapshot
from tintc.runtime.adaptation.state import AdaptedWeights
from tintc.runtime.execution.rates import Rates
from tintc.runtime.execution.run import check_inputs, execute_program

SHORTEST = 2
"""Tokens of the shortest prompt: with fewer there is nothing to predict, and so nothing to adapt to."""


def check_prompt(inputs: Inputs) -> None:
    """Raise `InputError` unless every text of the batch has something to adapt to."""
    valid = inputs.allowed.diagonal(dim1=1, dim2=2)
    shortest = int(valid.sum(1).min())
    if shortest < SHORTEST:
        raise InputError(
            f"A prompt has {shortest} token{'s' if shortest != 1 else ''}; a simulator adapts to its prompt, so pass "
            f"at least {SHORTEST} tokens, or a state that was adapted before."
        )


def prefill(sim: AdaptiveSimulator, inputs: Inputs, rates: Rates | None, keep: int) -> tuple[Tensor, TintCache]:
    """Return logits of the last `keep` tokens (0: of all), and the cache to go on with.

    Equal rows that stand side by side, as those of beams do, are adapted once.
    """
    check_prompt(inputs)
    count = 1
    if rates is None or rates.alike:
        count = inputs.repeats()
    each = inputs.each(count)
    if rates is not None:
        rates = rates.rows(slice(None, None, count))
    snapshot = WeightsSnapshot.of(sim)
    plan = sim.continuation
    outputs = {f"updated.{value.name}": value for value in plan.updated}
    outputs |= {f"kept.{value.name}": value for op in plan.mixing for value in remembered(op)}
    outputs |= {f"last.{value.name}": value for value in plan.tail.operands}
    carrying = {f"state.{op.result.name}": op for op in plan.mixing if op.CARRIES_STATE}
    results = execute_program(sim, replace(sim.program, outputs=outputs), each, rates, "fused", carrying=carrying)
    values = {value: results[label] for label, value in outputs.items()}
    state = AdaptedWeights(sim, {value: values[value] for value in plan.updated}, each.shape[0], snapshot)
    if not torch.is_grad_enabled():
        state = state.settled()
    cache = TintCache(plan.carrying, state)
    run = ContinuedRun(sim, each, each.position_ids)
    for place, op in enumerate(plan.mixing):
        if op.CARRIES_STATE:
            layer: Any = cache.layers[place]
            layer.state = results[f"state.{op.result.name}"]
        else:
            cache.update(*op.remember(run, *(values[value] for value in remembered(op))), place)
    (x,) = (values[value] for value in plan.tail.operands)
    logits = run.tail(x[:, -keep:])
    cache.extend(each.position_ids, _not_padding(each))
    if count > 1:
        cache.batch_repeat_interleave(count)
        logits = logits.repeat_interleave(count, 0)
    return logits, cache


def _not_padding(tokens: Inputs) -> Tensor | None:
    """Return which tokens ``[B, n]`` are no padding; None if all are none."""
    if tokens.plain:
        return None
    return tokens.allowed.diagonal(dim1=1, dim2=2)


def predict(
    sim: AdaptiveSimulator,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    state: AdaptedWeights,
    cache: TintCache | None,
    keep: int,
) -> Tensor:
    """Return logits of new tokens ``[B, n]`` under the state's weights, after those that the cache has read, if any.

    attention_mask: ``[B, n]``, or ``[B, m]`` with those of the cache before them; ``[B, n, n]`` without a cache.
    position_ids ``[B, n]`` (default: those that follow in each row).
    """
    check_ids(input_ids)
    past = 0
    seen = None
    if cache is not None and cache.get_seq_length():
        past = cache.get_seq_length()
        tokens = _following(input_ids, attention_mask, position_ids, cache)
    else:
        tokens = resolve_inputs(input_ids, torch.zeros_like(input_ids), None, attention_mask, position_ids)
        if not tokens.plain:
            seen = tokens.allowed
    check_inputs(sim, tokens, past + tokens.shape[1], sim.continuation.checked)
    state.check(sim, tokens.shape[0])
    positions = tokens.position_ids
    if cache is not None:
        cache.extend(positions, _not_padding(tokens))
        assert cache.positions is not None
        positions = cache.positions
        seen = None
        if cache.valid is not None:
            seen = cache.valid[:, None]
    replayed = replay_step(sim, tokens, state, cache)
    if replayed is not None:
        return replayed
    return ContinuedRun(sim, tokens, positions, seen, state.examples).run(state.values, cache, keep)


def _following(input_ids: Tensor, mask: Tensor | None, position_ids: Tensor | None, cache: TintCache) -> Inputs:
    """Return new tokens whose positions go on from the cache's."""
    assert cache.positions is not None
    if input_ids.shape[0] != cache.positions.shape[0] or not input_ids.shape[1]:
        raise InputError(
            f"input_ids has shape {tuple(input_ids.shape)}; the cache has {cache.positions.shape[0]} rows, so pass the "
            "new tokens of each."
        )
    if input_ids.device != cache.positions.device:
        raise InputError(
            f"The tokens are on {input_ids.device} and what the cache has read of earlier ones on "
            f"{cache.positions.device}; pass the whole text again, with the state or without a cache."
        )
    rows, count = input_ids.shape
    total = cache.positions.shape[1] + count
    valid = torch.ones_like(input_ids, dtype=torch.bool)
    if mask is not None:
        check_tensor("attention_mask", mask)
        if tuple(mask.shape) not in ((rows, count), (rows, total)):
            raise InputError(
                f"attention_mask has shape {tuple(mask.shape)}; with this cache it must be {(rows, total)}."
            )
        valid = mask[:, -count:].to(input_ids.device) != 0
    if position_ids is None:
        position_ids = cache.positions[:, -1:] + valid.long().cumsum(1)
    else:
        position_ids = matching("position_ids", position_ids, (rows, count), input_ids.device).long()
    nothing = torch.zeros_like(valid)
    return Inputs(input_ids.long(), position_ids, valid[:, None].expand(-1, count, -1), nothing, nothing)
