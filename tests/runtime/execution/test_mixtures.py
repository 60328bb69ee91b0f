"""Mixtures of experts: both interpreters, literal and fused execution agree, whatever the router's rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fused_cases import check_every_way
from programs import mixture_like, simulator
from tiny_models import token_ids
from torch import Tensor

from tintc.ir.auxiliary.interpreter import Descent, simulate
from tintc.ir.core import Program
from tintc.ir.functions import FiniteDifference
from tintc.ir.inputs import resolve_inputs
from tintc.ir.text import print_program
from tintc.options import Options
from tintc.runtime.model.adapted_state import AdaptedState

ROUTERS: dict[str, dict[str, Any]] = {
    "softmax": {"chosen": 2},
    "softmax, renormalised": {"chosen": 3, "normalise": "sum", "layers": 2},
    "top k, then softmax": {"chosen": 2, "scores": "identity", "normalise": "softmax"},
    "sigmoid, bias, groups": {
        "chosen": 2,
        "experts": 6,
        "scores": "sigmoid",
        "bias": True,
        "groups": 3,
        "kept_groups": 2,
        "group_score": "top2",
        "normalise": "sum",
        "eps": 1e-20,
        "factor": 2.5,
    },
    "gains": {"chosen": 2, "normalise": "sum", "gains": True},
    "sparse mixer": {"chosen": 2, "scores": "sparse_mixer", "jitter": 0.1},
    "input scaled": {"chosen": 1, "scores": "sigmoid", "scaled_input": True},
    "more experts than a slot is wide": {"chosen": 4, "experts": 13, "d_ff": 5, "width": 6},
}


def made(name: str) -> tuple[Program, dict[str, Tensor]]:
    """Of one layer, unless the router's own options say two."""
    options: dict[str, Any] = {"layers": 1} | ROUTERS[name]
    return mixture_like(**options)


@pytest.mark.parametrize("name", ROUTERS)
def test_all_ways_agree(name: str) -> None:
    """fp64, 1e-9 of the update. Tokens between train tokens, to which later ones' gradients come, add nothing."""
    program, tensors = made(name)
    sim = simulator(program, tensors, inner_lr=0.02)
    train = torch.tensor([[1, 1, 0, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 1, 1, 1, 0]])
    check_every_way(sim, program, tensors, token_ids(2, 9, 11), Descent(0.02), train_mask=train)


@pytest.mark.parametrize(
    "name", ["softmax, renormalised", "gains", "sparse mixer", "input scaled", "more experts than a slot is wide"]
)
def test_the_full_gradient_reaches_routers(name: str) -> None:
    """All ways agree; fp64, 1e-9 of the update. Routers descend."""
    program, tensors = made(name)
    options = Options(gradient="full", descend="all")
    sim = simulator(program, tensors, inner_lr=0.02, gradient="full", descend="all")
    ids = token_ids(2, 9, 11)
    descent = Descent(0.02, groups=options.groups, full=True, difference=FiniteDifference("central", 3e-3))
    check_every_way(sim, program, tensors, ids, descent)
    _, _, updated = simulate(program, tensors, resolve_inputs(ids), descent)
    router = "h.0.experts.router.weight"
    assert float((updated[router] - tensors[router]).abs().max()) > 0


def test_biases_steps_and_padding() -> None:
    """Two steps of a layer with biases, padding on either side; fp64, 1e-9 of the update."""
    program, tensors = mixture_like(chosen=2, normalise="sum", biases=True)
    sim = simulator(program, tensors, inner_lr=0.02, n_steps=2, n_update_layers=1)
    ids = token_ids(2, 9, 11)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    mask[1, 7:] = 0
    descent = Descent(0.02, n_steps=2, n_update_layers=1)
    check_every_way(sim, program, tensors, ids, descent, attention_mask=mask)


def test_text_does_not_grow_with_the_number_of_experts() -> None:
    lengths = set()
    for experts in (12, 96):
        program, tensors = mixture_like(chosen=2, experts=experts, layers=1)
        lengths.add(len(print_program(simulator(program, tensors).program).replace(str(experts), "EE")))
    assert max(lengths) < 1.02 * min(lengths)


def test_roles_name_the_expert() -> None:
    program, tensors = mixture_like(chosen=2, experts=3, layers=1, biases=True)
    sim = simulator(program, tensors)
    rows = [role for role in sim.roles() if role.parameter.startswith("h.0.experts.up.weight")]
    assert {role.parameter for role in rows} == {f"h.0.experts.up.weight[{expert}]" for expert in range(3)}
    assert {role.phase for role in rows} == {"forward", "backward", "descent"}
    assert any(place.of.startswith("h.0.experts.act") for role in sim.roles() for place in role.reads)


def test_states_and_their_files() -> None:
    """A state predicts as the run does, in either executor and from a file; a row of it as that row (fp64, 1e-9)."""
    program, tensors = mixture_like(layers=1, chosen=2, normalise="sum", biases=True)
    sim = simulator(program, tensors, inner_lr=0.02, n_steps=2)
    ids = token_ids(2, 9, 11)
    with torch.no_grad():
        right = sim(ids).logits
    for executor in ("literal", "fused"):
        sim.executor = executor
        with torch.no_grad():
            state = sim.adapt(ids)
        sim.executor = "fused"
        with torch.no_grad():
            torch.testing.assert_close(sim(ids, state=state).logits, right, rtol=0, atol=1e-9)
            torch.testing.assert_close(sim(ids[1:], state=state.example(1)).logits, right[1:], rtol=0, atol=1e-9)


def test_state_file(tmp_path: Path) -> None:
    program, tensors = mixture_like(layers=1, chosen=2, normalise="sum", biases=True)
    sim = simulator(program, tensors, inner_lr=0.02)
    sim.executor = "fused"
    ids = token_ids(2, 9, 11)
    with torch.no_grad():
        state = sim.adapt(ids)
        state.save(tmp_path / "state.safetensors")
        read = AdaptedState.load(tmp_path / "state.safetensors", sim)
        torch.testing.assert_close(sim(ids, state=read).logits, sim(ids, state=state).logits, rtol=0, atol=1e-12)


def test_gradients_of_both_executors_agree() -> None:
    """Of the logits' square with respect to all weights of experts and the router, through the step (fp64, 1e-9)."""
    program, tensors = mixture_like(layers=1, chosen=2, normalise="sum", biases=True)
    sim = simulator(program, tensors, inner_lr=0.02)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for executor in ("literal", "fused"):
        sim.executor = executor
        sim.zero_grad()
        sim(token_ids(2, 9, 11)).logits.square().mean().backward()
        named = ((name, parameter.grad) for name, parameter in sim.named_parameters() if ".experts." in name)
        found[executor] = {name: grad.clone() for name, grad in named if grad is not None}
    assert "prefixes.h.0.experts.router.weight" in found["fused"]
    for name, grad in found["literal"].items():
        assert float((found["fused"][name] - grad).norm()) < 1e-9 * float(grad.norm()), name


def test_tokens_one_by_one() -> None:
    """The next token's logits from the cache are those of the whole text under the same weights (fp64, 1e-9)."""
    program, tensors = mixture_like(chosen=2, normalise="sum")
    sim = simulator(program, tensors, inner_lr=0.02)
    sim.executor = "fused"
    ids = token_ids(2, 9, 11)
    with torch.no_grad():
        cache = sim(ids[:, :6], use_cache=True).past_key_values
        found = sim(ids[:, 6:7], past_key_values=cache, use_cache=True).logits[:, -1]
        right = sim(ids[:, :7], state=sim.adapt(ids[:, :6])).logits[:, -1]
    torch.testing.assert_close(found, right, rtol=0, atol=1e-9)
