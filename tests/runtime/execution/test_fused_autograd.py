"""Fused execution is differentiable: an outer loss reaches prefixes, tables and rates through the simulated descent.

fp64: `gradcheck` against finite differences (1e-4 relative), literal execution's gradients to 1e-8.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fused_cases import family, token_ids
from torch import Tensor

from tintc.runtime.model.causal_lm import TintForCausalLM

MODES = ("lazy", "materialised")
PARTS = ("prefixes", "tables", "rates")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def sim(request: pytest.FixtureRequest) -> TintForCausalLM:
    """A simulator of this file's own, of two steps on the top layer."""
    return family(request.param).compile(n_steps=2, n_update_layers=1, inner_lr=0.02)


def outer_loss(sim: TintForCausalLM, executor: str, update: str = "auto", **given: Any) -> Tensor:
    sim.executor, sim.update = executor, update
    ids = token_ids(2, 9)
    loss = sim(ids, labels=ids, **given).loss
    assert loss is not None
    return loss


def chosen(sim: TintForCausalLM) -> dict[str, Tensor]:
    """One parameter of every kind: a bias and a weight that are updated, a norm's gain, a table, every rate."""
    named = {name: p for name, p in sim.named_parameters() if name.startswith(PARTS)}
    kinds = {}
    for name, parameter in named.items():
        layer = ".2." in name or name.startswith("tables")
        if layer or "final" in name or "norm" in name.split(".")[-2]:
            kinds.setdefault((name.split(".")[0], name.split(".")[-1], parameter.dim()), name)
    return {name: named[name] for name in kinds.values()}


@pytest.mark.parametrize("update", MODES)
def test_gradcheck_through_the_update(sim: TintForCausalLM, update: str) -> None:
    """gradcheck moves the simulator's own parameters, which the run reads."""
    parameters = chosen(sim)
    assert {name.split(".")[0] for name in parameters} == set(PARTS)

    def loss(*_: Tensor) -> Tensor:
        return outer_loss(sim, "fused", update)

    assert torch.autograd.gradcheck(loss, tuple(parameters.values()), fast_mode=True, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_are_the_literal_ones(sim: TintForCausalLM, padded: bool) -> None:
    """Every parameter that is not structural; a padded batch has rows without keys and tokens without gradient."""
    names = [name for name, _ in sim.named_parameters() if name.startswith(PARTS)]
    mask = torch.ones(2, 9)
    if padded:
        mask[0, :3] = 0
    found: dict[str, dict[str, Tensor]] = {}
    for executor, update in (("literal", "auto"), *(("fused", mode) for mode in MODES)):
        sim.zero_grad()
        outer_loss(sim, executor, update, attention_mask=mask).backward()
        named = dict(sim.named_parameters())
        found[f"{executor} {update}"] = {name: grad.clone() for name in names if (grad := named[name].grad) is not None}
    right = found.pop("literal auto")
    assert len(right) > 10
    for mode, gradients in found.items():
        assert gradients.keys() == right.keys()
        for name, gradient in gradients.items():
            scale = right[name].norm()
            assert bool(gradient.isfinite().all())
            assert float((gradient - right[name]).norm()) <= 1e-8 * float(scale) + 1e-12, (mode, name)


def test_a_rate_of_the_call_receives_a_gradient() -> None:
    sim = family("opt").compile(n_steps=2)
    rate = torch.tensor([0.02, 0.01], dtype=torch.float64, requires_grad=True)
    for update in MODES:
        assert torch.autograd.gradcheck(
            lambda r, update=update: outer_loss(sim, "fused", update, inner_lr=r), (rate,), atol=1e-7, rtol=1e-4
        )


@pytest.mark.parametrize("update", MODES)
def test_gradient_mode_changes_no_result(sim: TintForCausalLM, update: str) -> None:
    """Without gradients, weights of an earlier step are overwritten; with them nothing is."""
    with_gradients = outer_loss(sim, "fused", update).detach()
    with torch.no_grad():
        without = outer_loss(sim, "fused", update)
    with torch.inference_mode():
        inference = outer_loss(sim, "fused", update)
    assert torch.allclose(with_gradients, without, rtol=1e-13) and torch.allclose(without, inference, rtol=1e-13)
