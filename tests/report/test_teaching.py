"""The change of an updated layer's output is the sum over train tokens that the page shows; in fp64."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from fused_cases import run
from programs import gpt_like, llama_like, mixture_like, simulator
from tiny_models import relative, token_ids
from torch import Tensor

from tintc.ir.simulator import LinearDescent
from tintc.report.reading import teaching_grids
from tintc.report.taught import ExpertsUpdate, LayerUpdate, LinearUpdate, NormUpdate
from tintc.report.teaching import by_layer, strongest, updates_of
from tintc.report.text import run_text
from tintc.runtime.model.causal_lm import TintForCausalLM

LENGTH = 13
CASES = {
    "one step": ("llama", {"n_update_layers": 2}),
    "three steps, biases": ("gpt", {"n_update_layers": 2, "n_steps": 3, "inner_lr": 0.005}),
    "biases held several times": ("gpt", {"semantics": "paper-code", "n_steps": 2, "inner_lr": 0.005}),
}


PROGRAMS = {"gpt": gpt_like, "llama": llama_like}


@cache
def compiled(name: str, **options: Any) -> TintForCausalLM:
    """A simulator of three layers, for each set of options."""
    program, tensors = PROGRAMS[name](layers=3, vocab=53)
    chosen: dict[str, Any] = {"inner_lr": 0.02} | options
    sim = simulator(program, tensors, **chosen)
    sim.config.num_hidden_layers, sim.config.n_update_layers = 3, options.get("n_update_layers", 3)
    return sim


GAINS = "values,out,ffn,norm-bias,norm-gain"


def before_the_update(sim: TintForCausalLM, update: LayerUpdate) -> Tensor:
    """What the layer's stored weights give for what it reads in the last pass."""
    prefix: Any = sim.prefix(update.name)
    parts = {part: tensor.detach() for part, tensor in prefix.named_parameters()}
    if isinstance(update, NormUpdate):
        return parts.get("gain", 1.0) * update.normed + parts.get("bias", 0.0)
    weight = parts["weight"].flatten(-3, -2)[..., : update.output.shape[-1], :]
    if isinstance(update, LinearUpdate):
        return update.x @ weight.T + parts.get("bias", 0.0)
    assert isinstance(update, ExpertsUpdate)
    y = torch.einsum("tkd,tked->tke", update.x, weight[update.chosen]) + parts["bias"][update.chosen]
    return y * (update.chosen >= 0)[..., None]


def updates_by(sim: TintForCausalLM, executor: str, *masks: Tensor) -> list[LayerUpdate]:
    """The updates on a text, by one executor. masks: which tokens are trained on, and whose losses count."""
    kept = sim.executor
    sim.executor = executor
    try:
        return updates_of(sim, sim.resolve(token_ids(1, LENGTH), *masks))
    finally:
        sim.executor = kept


def check_sums(sim: TintForCausalLM, updates: Sequence[LayerUpdate]) -> None:
    """Contributions add up to the change, to 1e-9 of it."""
    for update in updates:
        right = update.output - before_the_update(sim, update)
        parts = torch.stack([update.contribution(token) for token in range(LENGTH)])
        assert float(right.norm()) > 0, update.name
        assert relative(parts.sum(0), right) < 1e-9, update.name
        assert relative(update.change(), right) < 1e-9
        shares = update.shares()
        lengths = right.flatten(1).norm(dim=1) / update.output.flatten(1).norm(dim=1)
        assert relative(shares.sum(1), lengths) < 1e-9
        direction = (right / right.flatten(1).norm(dim=1).reshape(-1, *[1] * (right.dim() - 1))).flatten(1)
        each = (parts.flatten(2) * direction).sum(-1).T / update.output.flatten(1).norm(dim=1)[:, None]
        assert relative(shares, each) < 1e-9
        assert not shares[:, LENGTH // 2 :].any(), "tokens that are not trained on teach nothing"


@pytest.mark.parametrize("executor", ["fused", "literal"])
@pytest.mark.parametrize("case", CASES)
def test_contributions_add_up_to_the_change(case: str, executor: str) -> None:
    """To 1e-9 of the change: the layer's output less what its stored weights give for the same input."""
    name, options = CASES[case]
    sim = compiled(name, **options)
    updates = updates_by(sim, executor)
    updated = options.get("n_update_layers", 3)
    assert {update.layer for update in updates if update.layer >= 0} == set(range(3 - updated, 3))
    norms = [update for update in updates if isinstance(update, NormUpdate)]
    assert len(norms) == (0 if name == "llama" else 2 * updated + 1)
    check_sums(sim, updates)


@pytest.mark.parametrize("executor", ["fused", "literal"])
def test_contributions_of_gains_and_experts_add_up(executor: str) -> None:
    """Gains with and without biases; experts with biases, of which a token has chosen two of five."""
    sim = compiled("llama", n_update_layers=2, descend=GAINS)
    updates = [update for update in updates_by(sim, executor) if isinstance(update, NormUpdate)]
    assert len(updates) == 5 and all(step.bias is None for update in updates for step in update.steps)
    check_sums(sim, updates)
    sim = mixture(n_steps=2, descend=GAINS)
    updates = updates_by(sim, executor)
    assert sum(isinstance(update, ExpertsUpdate) for update in updates) == 6
    check_sums(sim, updates)


@cache
def mixture(**options: Any) -> TintForCausalLM:
    program, tensors = mixture_like(vocab=53, biases=True, chosen=2)
    return simulator(program, tensors, max_length=16, inner_lr=0.005, **options)


@pytest.mark.parametrize("executor", ["fused", "literal"])
@pytest.mark.parametrize("kind", ["experts", "norm"])
def test_what_experts_and_norms_lose_without_a_token(kind: str, executor: str) -> None:
    """As below, of weights in layer 0 whose inputs no update has changed: its experts' first, where experts alone
    descend, and its first norm. Layer 1's attention brings them a gradient of tokens whose own loss is left out."""
    descend, name = {"experts": ("ffn", "h.0.experts.up"), "norm": ("norm-gain,norm-bias", "h.0.ln1")}[kind]
    sim = mixture(descend=descend)
    token = 3
    train = torch.arange(LENGTH)[None] < 7
    losses = torch.ones(1, LENGTH)
    losses[0, token : token + 2] = 0
    without = train.clone()
    without[0, token] = False
    whole, less = (
        next(update for update in updates_by(sim, executor, mask, losses) if update.origin == name)
        for mask in (train, without)
    )
    right = whole.output - less.output
    assert float(right.norm()) > 0
    assert relative(whole.contribution(token), right) < 1e-9
    assert relative(whole.contribution(token + 2), right) > 1e-3, "another token's is another"


@pytest.mark.parametrize("token", [1, 3, 4])
def test_a_contribution_is_what_is_lost_without_the_token(token: int) -> None:
    """Exact where the layer's input does not depend on the update, and the losses that count are the same.

    The value layer of the only updated layer is such a one. A token that is left out of descent may be no target's
    token either, so both runs leave out the losses at it and at the token before it.
    """
    sim = compiled("llama", n_update_layers=1)
    (value,) = [op.origin for op in sim.program.ops if isinstance(op, LinearDescent) and op.role == "value"]
    ids = token_ids(1, LENGTH)
    train = torch.arange(LENGTH)[None] < 7
    losses = torch.ones(1, LENGTH)
    losses[0, token : token + 2] = 0
    without = train.clone()
    without[0, token] = False
    outputs: list[Tensor] = []
    for mask in (train, without):
        with sim.capture(f"pass1.modules.{value}") as seen:
            run(sim, ids, train_mask=mask, loss_mask=losses)
        outputs.append(seen[f"pass1.modules.{value}"][0])
    updates = updates_of(sim, sim.resolve(ids, train, losses))
    (update,) = [one for one in updates if one.origin == value]
    right = outputs[0] - outputs[1]
    assert float(right.norm()) > 0
    assert relative(update.contribution(token), right) < 1e-9
    other = update.contribution((token + 1) % 6)
    assert relative(other, right) > 1e-3, "another token's is another"


def test_what_is_drawn_is_the_part_of_the_scored_tokens() -> None:
    sim = compiled("llama", n_update_layers=2)
    text = run_text(sim, token_ids(1, LENGTH)[0])
    shares = by_layer(updates_of(sim, text.inputs))
    assert list(shares) == [1, 2]
    grids = teaching_grids(shares, text)
    total = next(iter(grids.values()))
    assert total.shape == (LENGTH - 6, 6)
    # Token 6, the first that is scored, is predicted by the output at token 5.
    torch.testing.assert_close(total[0], shares[1][5, :6] + shares[2][5, :6], rtol=0, atol=0)
    assert relative(torch.stack(list(grids.values())[1:]).sum(0), total) < 1e-12
    pairs = strongest(total, 0, 3)
    assert [abs(share) for _, _, share in pairs] == sorted((abs(share) for _, _, share in pairs), reverse=True)
    assert abs(pairs[0][2]) == float(total.abs().max()) and len({row for row, _, _ in pairs}) == 3


def test_other_steps_have_no_such_sums() -> None:
    sim = compiled("llama", n_update_layers=1, optimizer="normalized")
    assert updates_of(sim, sim.resolve(token_ids(1, LENGTH))) == []
