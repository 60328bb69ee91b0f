"""The change of an updated layer's output is the sum over train tokens that the page shows; in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fused_cases import compiled, run
from tiny_models import relative, token_ids
from torch import Tensor

from tintc.ir.simulator import LinearDescent
from tintc.report.reading import teaching_grids
from tintc.report.teaching import LayerUpdate, by_layer, left_out, strongest, updates_of
from tintc.report.text import run_text
from tintc.runtime.model.causal_lm import TintForCausalLM

LENGTH = 13
CASES = {
    "one step": ("llama", {"n_update_layers": 2}),
    "three steps, biases": ("gpt2", {"n_update_layers": 2, "n_steps": 3, "inner_lr": 0.005}),
    "biases held several times": ("opt", {"semantics": "paper-code", "n_steps": 2, "inner_lr": 0.005}),
}


def stored(sim: TintForCausalLM, update: LayerUpdate) -> tuple[Tensor, Tensor | float]:
    """The layer's weights before the update, ``[dout, din]``, and its bias."""
    prefix: Any = sim.prefix(update.name)
    parts = dict(prefix.named_parameters())
    weight = parts["weight"].detach().flatten(-3, -2)[: update.output.shape[1]]
    return weight, parts["bias"].detach() if "bias" in parts else 0.0


@pytest.mark.parametrize("executor", ["fused", "literal"])
@pytest.mark.parametrize("case", CASES)
def test_contributions_add_up_to_the_change(case: str, executor: str) -> None:
    """To 1e-9 of the change: the layer's output less what its stored weights give for the same input."""
    name, options = CASES[case]
    sim = compiled(name, **options)
    inputs = sim.resolve(token_ids(1, LENGTH))
    kept = sim.executor
    sim.executor = executor
    try:
        updates = updates_of(sim, inputs)
    finally:
        sim.executor = kept
    updated = options.get("n_update_layers", 3)
    assert {update.layer for update in updates} == set(range(3 - updated, 3))
    for update in updates:
        weight, bias = stored(sim, update)
        right = update.output - (update.x @ weight.T + bias)
        parts = torch.stack([update.contribution(token) for token in range(LENGTH)])
        assert float(right.norm()) > 0
        assert relative(parts.sum(0), right) < 1e-9, update.name
        assert relative(update.change(), right) < 1e-9
        shares = update.shares()
        assert relative(shares.sum(1), right.norm(dim=1) / update.output.norm(dim=1)) < 1e-9
        assert not shares[:, LENGTH // 2 :].any(), "tokens that are not trained on teach nothing"


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


def test_updates_that_are_no_linear_layers_are_named() -> None:
    assert left_out(compiled("llama", n_update_layers=2).program) == ""
    assert "norms" in left_out(compiled("gpt2", n_update_layers=2, n_steps=3, inner_lr=0.005).program)
