"""Few-shot masks: what they say, and that "Single" trains on demonstrations as on a batch. fp64, 1e-9."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from programs import Imported, import_model, relative_to_update
from tiny_models import gpt2, llama, opt, token_ids
from torch import Tensor

from tintc import masks
from tintc.errors import InputError, OptionError
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.trace_model import capture
from tintc.ir.inputs import resolve_inputs
from tintc.reference import tune
from tintc.reference.simulated_gradients import simulated_gradients
from tintc.runtime.model.causal_lm import TintForCausalLM
from tools.sweep.tiny import tiny_model

LENGTHS = st.lists(
    st.tuples(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 4)), min_size=1, max_size=3
)


@given(LENGTHS)
def test_what_masks_say(texts: list[tuple[list[int], int]]) -> None:
    """Token by token: who sees whom, where, and what counts."""
    demonstrations, queries = [list(text) for text, _ in texts], [query for _, query in texts]
    alone, together = masks.single(demonstrations, queries), masks.multi(demonstrations, queries)
    for row, (lengths, query) in enumerate(texts):
        owner = [name for name, length in enumerate(lengths) for _ in range(length)] + [-1] * query
        total = alone["train_mask"].shape[1]
        for found in (alone, together):
            assert found["train_mask"][row].tolist() == [i < sum(lengths) for i in range(total)]
            seen = found["attention_mask"][row]
            for t in range(total):
                real = t < len(owner)
                keys = [j for j in range(t + 1) if (j < len(owner)) == real]
                if found is alone and real:
                    keys = [j for j in keys if owner[j] == owner[t]]
                assert seen[t].nonzero()[:, 0].tolist() == keys
                if real:
                    assert int(found["position_ids"][row, t]) == t - (keys[0] if found is alone else 0)
        firsts = {sum(lengths[:index]) for index in range(len(lengths))}
        counted = [i < sum(lengths) and i not in firsts for i in range(total)]
        assert alone["loss_mask"][row].tolist() == counted
        assert torch.equal(together["loss_mask"], together["train_mask"])


@pytest.mark.parametrize(
    ("demonstrations", "queries", "why"),
    [
        ([[3]], [1, 2], "for 1 texts and 2 queries"),
        ([], [], "0 texts"),
        ([[3, 0]], [2], "at least one"),
        ([[]], [0], "empty"),
    ],
)
def test_lengths_that_are_none(demonstrations: Any, queries: Any, why: str) -> None:
    for make in (masks.single, masks.multi):
        with pytest.raises(InputError, match=why):
            make(demonstrations, queries)


MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2,
    "opt": lambda: opt(n_layers=2, n_heads=3, head_dim=4, d_ff=20),
    "llama": lambda: llama(n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, d_ff=20),
}
PARTS = (5, 3, 6)
IDS = token_ids(1, sum(PARTS) + 4)
GIVEN: dict[str, Any] = masks.single([list(PARTS)], [4])


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Imported:
    return import_model(MODELS[request.param]())


def pieces() -> list[Tensor]:
    return list(IDS[:, : sum(PARTS)].split(PARTS, 1))


def test_single_is_the_demonstrations_as_a_batch(model: Imported) -> None:
    """The gradient is the sum of theirs, and the query is predicted as if it stood alone, by what that sum makes."""
    sim = model.compile(inner_lr=0.02)
    sim.executor = "fused"
    apart = [simulated_gradients(sim, resolve_inputs(ids, torch.ones_like(ids))) for ids in pieces()]
    for executor in ("fused", "literal"):
        sim.executor = executor
        together = simulated_gradients(sim, resolve_inputs(IDS, **GIVEN))
        for name, gradient in together.items():
            summed = torch.stack([found[name] for found in apart]).sum(0)
            assert float((gradient - summed).norm()) < 1e-9 * float(summed.norm()), (executor, name)
    with torch.no_grad():
        out = sim(IDS, return_before=True, **GIVEN)
        query = sim(IDS[:, -4:], train_mask=torch.zeros(1, 4), return_before=True)
    update = float((out.logits - out.logits_before).norm())
    assert float((out.logits_before[:, -4:] - query.logits).norm()) < 1e-9 * update


@pytest.fixture(scope="module")
def two_steps(model: Imported) -> tuple[TintForCausalLM, CapturedGraph]:
    """The simulator of two steps, and the model's graph."""
    return model.compile(inner_lr=0.02, n_steps=2), capture(model.source.model)


@pytest.mark.parametrize("few", ["single", "multi", "padded"])
def test_explicit_fine_tuning_agrees(two_steps: tuple[TintForCausalLM, CapturedGraph], few: str) -> None:
    """`tune` with the masks is the simulator; its gradient under "Single" is that of the demonstrations as a batch."""
    given: dict[str, Any] = {"single": GIVEN, "multi": masks.multi([list(PARTS)], [4])}.get(few) or {
        "attention_mask": (torch.arange(IDS.shape[1]) > 2).long()[None],
        "train_mask": (torch.arange(IDS.shape[1]) < 12)[None],
    }
    sim, graph = two_steps
    tuned = tune(graph, IDS, inner_lr=0.02, n_steps=2, **given)
    with torch.no_grad():
        found = sim(IDS, return_before=True, **given)
    keep = slice(3, None) if few == "padded" else slice(None)
    assert relative_to_update(found.logits[:, keep], tuned.logits[:, keep], tuned.logits_before[:, keep]) < 1e-9
    if few == "single":
        apart = [tune(graph, ids, torch.ones_like(ids)).gradients[0] for ids in pieces()]
        for name, gradient in tuned.gradients[0].items():
            summed = torch.stack([one[name] for one in apart]).sum(0)
            assert float((gradient - summed).norm()) <= 1e-9 * float(summed.norm()), name


def test_scores_that_are_not_detached_obey_masks_too() -> None:
    """Fused and written-out attention alike, differentiated exactly."""
    from tintc.reference import Approximations

    graphs = [capture(gpt2(n_layers=1, attention=kind).double()) for kind in ("sdpa", "eager")]
    found = [tune(graph, IDS, approximations=Approximations(), **GIVEN).gradients[0] for graph in graphs]
    apart = [tune(graphs[0], ids, torch.ones_like(ids), approximations=Approximations()) for ids in pieces()]
    for name, gradient in found[0].items():
        summed = torch.stack([one.gradients[0][name] for one in apart]).sum(0)
        for other in (gradient, found[1][name]):
            assert float((other - summed).norm()) <= 1e-9 * max(1.0, float(summed.norm())), name


def test_positions_as_the_graph_has_them_move_nothing() -> None:
    """So ALiBi, whose positions cannot be moved, takes a mask that hides no token."""
    graph, train = capture(tiny_model("mpt", n_layers=1).double()), torch.arange(IDS.shape[1])[None] < 6
    plain, masked = (tune(graph, IDS, train, attention_mask=mask) for mask in (None, torch.ones_like(IDS)))
    assert relative_to_update(masked.logits, plain.logits, plain.logits_before) < 1e-9
    with pytest.raises(OptionError, match="no position embedding"):
        tune(graph, IDS, train, position_ids=(torch.arange(IDS.shape[1]) // 2)[None])


def test_masks_that_do_not_fit() -> None:
    graph = capture(gpt2(n_layers=1))
    ids, train = token_ids(1, 5), torch.ones(1, 5)
    refused: list[tuple[str, dict[str, Any]]] = [
        ("attention_mask has shape", {"attention_mask": torch.ones(1, 4)}),
        ("position_ids has shape", {"position_ids": torch.arange(5)}),
        ("from 0 to 4", {"position_ids": torch.arange(1, 6)[None]}),
    ]
    for why, given_masks in refused:
        with pytest.raises((InputError, OptionError), match=why):
            tune(graph, ids, train, **given_masks)
