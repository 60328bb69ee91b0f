"""Groups of parameters that descend, norm gains among them. fp64, 1e-9 of the update or gradient."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from fused_cases import compiled, family, run, token_ids
from programs import check_agreement, gpt_like, import_model, llama_like, relative_to_update, simulator, three_ways
from transformers import PreTrainedModel

from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.ir.auxiliary.interpreter import Descent, view
from tintc.ir.inputs import resolve_inputs
from tintc.option_facts import FULL_ONLY, GROUPS
from tintc.reference import Approximations, tune
from tintc.reference.groups import origin_of
from tintc.reference.simulated_gradients import simulated_gradients
from tintc.runtime.execution.fused.planner import UPDATES
from tools.sweep.tiny import tiny_model

ALL = ",".join(group for group in GROUPS if group not in FULL_ONLY)


@pytest.mark.parametrize(
    ("name", "descend"),
    [("gpt", ALL), ("llama", ALL), ("gpt", "values,norm-bias"), ("gpt", "norm-gain"), ("llama", "ffn,norm-gain")],
)
def test_all_ways_agree(name: str, descend: str) -> None:
    program, tensors = gpt_like(seed=7) if name == "gpt" else llama_like(seed=7)
    sim = simulator(program, tensors, n_steps=2, inner_lr=0.01, descend=descend)
    sim.trust()
    ids = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))
    descent = Descent(0.01, 2, groups=frozenset(descend.split(",")))
    found = three_ways(sim, program, tensors, ids, descent)
    check_agreement(found)
    for update in UPDATES:
        fused = run(sim, ids, "fused", update, return_before=True)
        alone = run(sim, ids, "fused", update)
        check_agreement({**found, "fused": (fused.logits_before, fused.logits)})
        assert relative_to_update(alone.logits, *reversed(found["auxiliary"])) < 1e-9, update


@pytest.mark.parametrize(
    ("name", "descend"), [("gpt2", ALL), ("gpt2", "norm-gain"), ("llama", "norm-gain"), ("llama", "out")]
)
def test_explicit_fine_tuning_agrees(name: str, descend: str) -> None:
    """Logits after two steps on the top two of three layers, and every gradient of the first, by both executors."""
    sim, ids = compiled(name, n_steps=2, n_update_layers=2, descend=descend), token_ids(1, 12)
    mask = (torch.arange(12) < 7)[None]
    found = run(sim, ids, train_mask=mask, return_before=True)
    chosen = replace(Approximations.of(), groups=frozenset(descend.split(",")))
    options = {"n_steps": 2, "n_update_layers": 2, "inner_lr": 0.02}
    tuned = tune(capture(family(name).source.model), ids, mask, approximations=chosen, **options)
    assert relative_to_update(found.logits, tuned.logits, tuned.logits_before) < 1e-9
    gains = [key for key in sim.program.parameters if key.endswith(".gain")]
    for executor in ("fused", "literal"):
        sim.executor = executor
        gradients = simulated_gradients(sim, resolve_inputs(ids, mask))
        assert bool(set(gains) & set(gradients)) == ("norm-gain" in descend)
        for key, gradient in gradients.items():
            parameter = sim.program.parameters[key]
            right = view(parameter, tuned.gradients[0][parameter.source][0])
            assert float((gradient - right).norm()) < 1e-9 * float(right.norm()), (executor, key)


@cache
def gemma() -> PreTrainedModel:
    return tiny_model("gemma", num_hidden_layers=1)


def test_gains_that_are_a_parameter_and_a_number_descend() -> None:
    """Gemma's are 1 + w."""
    model, ids = gemma(), token_ids(1, 8)
    graph, mask = capture(model), torch.ones_like(ids)
    tuned = tune(graph, ids, mask, approximations=replace(Approximations.of(), groups=frozenset({"norm-gain"})))
    assert set(tuned.gradients[0]) == {name for name in graph.parameter_names if name.endswith("norm.weight")}
    sim = import_model(model).compile(descend="norm-gain")
    sim.executor = "fused"
    gradients = simulated_gradients(sim, resolve_inputs(ids, mask))
    assert len(gradients) == len(tuned.gradients[0])
    for key, gradient in gradients.items():
        right = tuned.gradients[0][key.removesuffix(".gain") + ".weight"][0]
        assert float((gradient - right).norm()) < 1e-9 * float(right.norm()), key


def test_explicit_fine_tuning_refuses_gains_that_are_computed_otherwise() -> None:
    graph = capture(gemma())
    import_graph(graph)
    gain = graph.tensors["constant.model.norm.weight"]
    assert origin_of(graph, "constant.model.norm.weight") == "model.norm.weight"
    graph.tensors["constant.model.norm.weight"] = gain.square()
    graph.tensors["model.norm.weight"] = torch.randn_like(gain, generator=torch.Generator().manual_seed(0))
    assert origin_of(graph, "constant.model.norm.weight") == "constant.model.norm.weight"
