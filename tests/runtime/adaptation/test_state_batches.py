"""States of several texts: chosen, put together, averaged; and how large a state grows. fp64, 1e-12 of the largest."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from continuations import compiled, continued, worst
from fused_cases import token_ids
from torch import Tensor

from tintc.errors import OptionError
from tintc.runtime.adaptation.continuation import base_weights
from tintc.runtime.adaptation.state import materialised
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.causal_lm import TintForCausalLM

PROBE = token_ids(1, 7, seed=4)
TEXTS = token_ids(3, 9)


def adapted(sim: TintForCausalLM, texts: Tensor, update: str, **given: Any) -> AdaptedState:
    sim.update = update
    try:
        return sim.adapt(texts, **given)
    finally:
        sim.update = "auto"


def carried(state: AdaptedState) -> list[Tensor]:
    """The weights of each layer, ``[E, ...]`` or, of one text, ``[...]``, with all updates in them."""
    return [tensor for w in map(materialised, state.weights.values()) if (tensor := w.weight) is not None]


def predicted(sim: TintForCausalLM, state: AdaptedState, example: int) -> Tensor:
    return continued(sim, PROBE, state.example(example))


@pytest.mark.parametrize("update", ["lazy", "materialised"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_chosen_and_put_together(name: str, update: str) -> None:
    """Any texts in any order, each as often as one likes; those of one text too; states of texts of unequal length."""
    sim = compiled(name)
    state, other = adapted(sim, TEXTS, update), adapted(sim, token_ids(1, 14, seed=8), update)
    chosen = state.select([2, 0, 2])
    for place, example in enumerate((2, 0, 2)):
        assert worst(predicted(sim, chosen, place), predicted(sim, state, example)) < 1e-12
    assert worst(continued(sim, PROBE.expand(2, -1), other.select([0, 0]))[1], predicted(sim, other, 0)[0]) < 1e-12
    both = AdaptedState.stack([other, state.select([1, 2]), other])
    assert both.examples == 4
    for place, (one, example) in enumerate(((other, 0), (state, 1), (state, 2), (other, 0))):
        assert worst(predicted(sim, both, place), predicted(sim, one, example)) < 1e-12


@pytest.mark.parametrize("shares", [None, [2.0, 0.0, 1.0]])
@pytest.mark.parametrize("update", ["lazy", "materialised"])
def test_averaged(update: str, shares: list[float] | None) -> None:
    sim = compiled("llama")
    state = adapted(sim, TEXTS, update)
    parts = torch.tensor(shares or [1.0] * 3, dtype=torch.float64)
    mean = state.average(shares)
    assert mean.examples == 1
    for found, every in zip(carried(mean), carried(state), strict=True):
        assert worst(found.reshape(every.shape[1:]), torch.tensordot(parts / parts.sum(), every, 1)) < 1e-12
    assert worst(continued(sim, PROBE, mean), predicted(sim, state, 0)) > 1e-6


def test_what_is_no_choice() -> None:
    sim = compiled("gpt2")
    state = sim.adapt(TEXTS)
    choices: list[Any] = [[], [0.5], [[0]], [True]]
    for wrong in choices:
        with pytest.raises(OptionError, match="pass a list of one or more"):
            state.select(wrong)
    with pytest.raises(OptionError, match="has 3 examples; choose from 0 to 2"):
        state.select([3])
    for shares in ([1.0], [1.0, -1.0, 2.0], [0.0] * 3, [math.nan] * 3):
        with pytest.raises(OptionError, match="pass a number that is not negative for each of 3"):
            state.average(shares)
    with pytest.raises(OptionError, match="no state to stack"):
        AdaptedState.stack([])
    with pytest.raises(OptionError, match="belongs to another simulator"):
        AdaptedState.stack([state, compiled("gpt2", n_update_layers=1).adapt(TEXTS)])


RULES: list[dict[str, Any]] = [
    {"optimizer": "momentum", "n_update_layers": 1},
    {
        "optimizer": "normalized",
        "normalize": "all",
        "momentum": 0.5,
        "decay": 0.3,
        "inner_lr": 0.1,
        "n_update_layers": 2,
    },
]


@pytest.mark.parametrize("rule", RULES, ids=("momentum", "normalised, decay"))
def test_states_go_on_with_every_optimiser(rule: dict[str, Any]) -> None:
    """In both executors alike, and to the same weights: what is summed begins anew in each call, and decay draws back
    to the stored weights."""
    sim = compiled("gpt2", n_steps=2, **rule)
    masks = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 0, 0]] * 3)
    found = []
    for executor, update in (("fused", "auto"), ("fused", "lazy"), ("literal", "auto")):
        sim.executor = executor
        try:
            state = adapted(sim, TEXTS, update, train_mask=masks)
            second = adapted(sim, TEXTS.flip(1), update, train_mask=masks, state=state)
        finally:
            sim.executor = "fused"
        found.append(continued(sim, PROBE.expand(3, -1), second))
        assert worst(continued(sim, PROBE.expand(3, -1), state), found[0]) > 1e-4
    assert worst(found[0], found[2]) < 1e-10 and worst(found[1], found[2]) < 1e-10
    if "decay" in rule:
        still = adapted(sim, TEXTS, "auto", train_mask=torch.zeros(3, 9), state=second)
        kept = [w.weight for w in base_weights(sim).values() if w.weight is not None]
        for now, before, there in zip(carried(still), carried(second), kept, strict=True):
            assert torch.allclose(now - there, (1 - 0.1 * 0.3) ** 2 * (before - there), rtol=1e-9, atol=1e-12)


def size(state: AdaptedState) -> int:
    """Numbers that a state holds of its own or shares with the simulator; inputs that layers share count once."""
    tensors: dict[int, Tensor] = {}
    for w in state.weights.values():
        own = [w.weight, w.bias, *(part for update in w.pending for part in (update.x, update.dy))]
        tensors |= {part.data_ptr(): part for part in own if part is not None}
    return sum(part.numel() for part in tensors.values())


@pytest.mark.parametrize("rows", [1, 3])
def test_a_state_does_not_grow_with_the_chunks(rows: int) -> None:
    """Pending updates are carried out when they would be as many numbers as the weights: then it stays so large."""
    sim = compiled("llama")
    parts = [part for w in base_weights(sim).values() for part in (w.weight, w.bias) if part is not None]
    most = rows * sum(part.numel() for part in parts)
    state, sizes, pending = None, [], []
    for chunk in range(12):
        state = adapted(sim, token_ids(rows, 4, seed=chunk), "lazy", train_mask=torch.ones(rows, 4), state=state)
        sizes.append(size(state))
        pending.append(any(w.pending for w in state.weights.values()))
    assert max(sizes) <= 2 * most and sizes[-1] == sizes[-2] <= most
    assert not pending[-1] and pending[0] == (rows > 1), "several rows share the stored weights at first"
