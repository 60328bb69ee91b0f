"""Layers on several devices: on two GPUs that are not there, where tensors of both in one operator are an error, and on
two names of the CPU, where results are those of one (fp64, 1e-12 of the largest).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from attention_programs import decoder
from fake_gpu import GPU, fake_gpu, fake_inputs, on_fake_gpu
from programs import gpt_like, hybrid_like, mixture_like, simulator
from tiny_models import token_ids
from torch import Tensor, nn

from tintc.errors import OptionError
from tintc.ir.core import Value
from tintc.ir.simulator import StoredWeights
from tintc.runtime.adaptation.cache import TintCache
from tintc.runtime.adaptation.continuation import base_weights, stored_weights
from tintc.runtime.adaptation.continued_run import ContinuedRun
from tintc.runtime.execution.fused import base_run
from tintc.runtime.execution.fused.batches import sizes_of
from tintc.runtime.execution.fused.executor import FusedExecutor
from tintc.runtime.execution.fused.placed import Copies, devices_of
from tintc.runtime.execution.fused.planner import make_plan
from tintc.runtime.model import placing
from tintc.runtime.model.causal_lm import TintForCausalLM

SECOND = torch.device("cuda", 1)
KINDS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "gpt2": (gpt_like, {}),
    "all of attention": (decoder, {"window": 3, "soft_cap": 2.0, "slopes": (0.5, 0.25, 0.125), "sunk": True}),
    "experts": (mixture_like, {"chosen": 2, "normalise": "sum", "biases": True}),
    "delta rule": (hybrid_like, {"key_heads": 2, "delta": True, "unit_eps": 1e-6}),
    "state space": (hybrid_like, {"key_heads": 1, "by_coordinate": True, "skip": True}),
}


@cache
def kind(name: str, n_steps: int = 2) -> TintForCausalLM:
    """One simulator of two layers for all tests; those that change it copy it."""
    make, options = KINDS[name]
    return simulator(*make(**options), inner_lr=0.02, n_steps=n_steps)


def on_two_cards(sim: TintForCausalLM) -> TintForCausalLM:
    """Its layers from 1 on and its last norm are on the second; called in `fake_gpu`'s block."""
    other = on_fake_gpu(sim)
    for op in other.program.ops:
        if isinstance(op, StoredWeights) and op.layer != 0:
            prefix = other.prefix(op.name)
            for name, parameter in list(prefix.named_parameters()):
                tensor = torch.empty(parameter.shape, dtype=parameter.dtype, device=SECOND)
                setattr(prefix, name, nn.Parameter(tensor, requires_grad=False))
    other.placed = True
    return other


@pytest.mark.parametrize(("name", "padded"), [*((name, True) for name in KINDS), ("gpt2", False)])
def test_no_operator_meets_both(name: str, padded: bool) -> None:
    """A pass and the tokens after it, with padding and without; of two steps, or of one where the next has the same."""
    sim = kind(name, 1 + (name == "gpt2"))
    mask = torch.ones(2, 9)
    mask[0, :2] = 0
    inputs = sim.resolve(token_ids(2, 9, 11), attention_mask=mask if padded else None)
    assert inputs.plain != padded and inputs.only_padding
    sizes = sizes_of(inputs, sim.config.vocab_size)
    with fake_gpu():
        other = on_two_cards(sim)
        assert devices_of(other) == [GPU, SECOND]
        plan = make_plan(other.program, ("logits_before", "logits"), sizes)
        out = FusedExecutor(other, fake_inputs(inputs), plan, None, {}, on_device=True).run()
        assert out["logits"].device == GPU
        given = fake_inputs(inputs)
        cache, seen = TintCache(other.continuation.carrying), given.allowed if padded else None
        run = ContinuedRun(other, given, given.position_ids, seen)
        logits = run.run(stored_weights(other) | base_weights(other), cache)
        assert logits.device == GPU


@pytest.mark.parametrize("name", ["gpt2", "experts"])
def test_a_value_crosses_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To each card, however many ops read it there; and between two layers of one card nothing crosses."""
    sim = kind(name)
    inputs = sim.resolve(token_ids(2, 9, 11))
    sizes = sizes_of(inputs, sim.config.vocab_size)
    made: list[tuple[str, torch.device]] = []
    held: list[Tensor] = []
    plain = Copies.on

    def noted(self: Copies, device: torch.device, value: Value, x: Any) -> Any:
        copy = plain(self, device, value, x)
        if isinstance(x, Tensor) and x.device != device and all(copy._base is not one for one in held):
            held.append(copy._base)
            made.append((value.name, device))
        return copy

    monkeypatch.setattr(Copies, "on", noted)
    with fake_gpu():
        other = on_two_cards(sim)
        plan = make_plan(other.program, ("logits",), sizes)
        run = FusedExecutor(other, fake_inputs(inputs), plan, None, {}, on_device=True)
        run.run()
    assert made and len(made) == len(set(made)) and run._copies._known == {}
    # Of each of three passes: up and down; of each of two steps: up, down, and what the first of them reads again.
    assert len(made) <= 3 * 2 + 2 * 4, made


def test_what_is_moved_together_is_not_placed() -> None:
    """By `to`, whoever called it; a cast leaves it where it is."""
    sim = copy.deepcopy(kind("gpt2"))
    sim.prefixes.to("meta")
    sim.placed = True
    sim.float()
    assert sim.placed and sim.dtype == torch.float32
    sim.to("meta")
    assert not sim.placed and len(devices_of(sim)) == 1


@pytest.fixture
def two_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Layer 1 is on what is called another device and is the same."""
    monkeypatch.setattr(base_run, "layer_devices", lambda model: {1: torch.device("cpu", 0)})
    moves: list[torch.device] = []
    plain = base_run.FusedRunBase._on

    def seen(self: Any, device: torch.device) -> Any:
        moves.append(device)
        return plain(self, device)

    monkeypatch.setattr(base_run.FusedRunBase, "_on", seen)
    yield
    assert len(set(moves)) == 2


@pytest.mark.parametrize("name", ["gpt2", "all of attention", "experts", "state space"])
def test_results_are_those_of_one(name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of passes, adapted weights and new tokens."""
    sim, ids, mask = copy.deepcopy(kind(name)), token_ids(2, 9, 11), torch.ones(2, 9, dtype=torch.long)
    mask[0, :2] = 0
    sim.executor = "fused"
    rates = torch.tensor([[0.01, 0.03]])

    def all_of_it() -> list[Tensor]:
        with torch.no_grad():
            out = sim(ids, attention_mask=mask, inner_lr=rates, return_before=True)
            state = sim.adapt(ids)
            past = sim(ids, attention_mask=mask, use_cache=True).past_key_values
            later = [sim(ids[:, at : at + 2], past_key_values=past).logits for at in (0, 2)]
            return [out.logits, out.logits_before, sim(ids, state=state).logits, *later]

    wanted = all_of_it()
    request.getfixturevalue("two_names")
    monkeypatch.setattr(sim, "placed", True)
    for ours, theirs in zip(all_of_it(), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    ("device_map", "says"),
    [
        ({"prefixes": "cpu"}, "does not fit the simulator"),
        ({"": "cpu", "prefixes.nowhere": "cpu"}, "does not fit the simulator"),
        ({"": "cpu", "tables": "meta"}, "only parts of prefixes may lie elsewhere"),
        ({"": "cpu", "tables": "disk"}, "The device 'disk' is unknown"),
    ],
)
def test_maps_that_are_none(device_map: dict[str, str], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        kind("gpt2").place_layers(device_map)


def test_what_several_devices_do_not_bear() -> None:
    sim = copy.deepcopy(kind("gpt2"))
    assert sim.place_layers({"": "cpu", "prefixes": "cpu"}) == [torch.device("cpu")] and not sim.placed
    sim.placed, sim.executor = True, "literal"
    with pytest.raises(OptionError, match="only fused execution runs on"), torch.no_grad():
        sim(token_ids(1, 5, sim.config.vocab_size))


def test_accelerate_spreads_layers() -> None:
    """By the memory that each has, of two GPUs that are not there; what does not fit is refused."""
    sim = kind("gpt2")
    size = sum(p.numel() * p.element_size() for p in sim.prefixes.parameters())
    planned = placing._planned(sim, {0: int(size * 0.7), 1: size})
    assert planned[""] == 0 and set(planned.values()) == {0, 1}
    assert all(name == "" or name.startswith("prefixes.") for name in planned)
    with pytest.raises(OptionError, match="do not fit on the GPUs"):
        placing._planned(sim, {0: size // 4, 1: size // 4, "cpu": size})
