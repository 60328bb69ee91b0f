"""Several steps on different data: ``train_mask [N, B, T]``. fp64, 1e-9 of the update."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from fused_cases import check_fused, compiled, family, relative_to_update, run, token_ids
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from programs import check_agreement, gpt_like, simulator, three_ways
from torch import Tensor

from tintc.errors import InputError
from tintc.frontend.graph.trace_model import capture
from tintc.ir.auxiliary.interpreter import Descent
from tintc.ir.core import Program
from tintc.reference import tune
from tintc.runtime.execution.fused.planner import UPDATES
from tintc.runtime.model.causal_lm import TintForCausalLM

LENGTH = 9
LR = 0.01


@cache
def by_hand(steps: int, layers: int) -> tuple[Program, dict[str, Tensor], TintForCausalLM]:
    program, tensors = gpt_like(seed=6)
    sim = simulator(program, tensors, n_steps=steps, n_update_layers=layers, inner_lr=LR)
    sim.trust()
    return program, tensors, sim


def prefixes(*lengths: int, batch: int = 2, length: int = LENGTH) -> Tensor:
    """Step n trains on the first ``lengths[n]`` tokens."""
    return (torch.arange(length) < torch.tensor(lengths)[:, None, None]).expand(-1, batch, -1)


@settings(max_examples=8, deadline=None, phases=(Phase.generate,))
@given(st.integers(1, 3), st.integers(1, 2), st.floats(0.2, 0.9), st.integers(0, 10_000))
def test_any_masks(steps: int, layers: int, share: float, seed: int) -> None:
    """Auxiliary interpreter = simulator interpreter = literal = fused, lazy and materialised."""
    program, tensors, sim = by_hand(steps, layers)
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(steps, 2, LENGTH, generator=generator) < share
    masks[0, 0, 2:5] = True  # so that there is an update
    ids = torch.randint(0, 11, (2, LENGTH), generator=generator)
    ways = three_ways(sim, program, tensors, ids, Descent(LR, steps, layers), train_mask=masks)
    check_agreement(ways)
    before, after = ways["interpreter"]
    for update in UPDATES:
        out = run(sim, ids, update=update, train_mask=masks, return_before=True)
        assert relative_to_update(out.logits, after, before) < 1e-9, update
        assert float((out.logits_before - before).norm() / (after - before).norm()) < 1e-9, update


@pytest.mark.parametrize("lengths", [(8, 3), (3, 8), (6, 0), (0, 6)])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_steps_of_other_lengths(name: str, lengths: tuple[int, int]) -> None:
    """The lowest updated layer's input is one value for all steps, of which each reads its own part."""
    sim, masks = compiled(name, n_steps=2, n_update_layers=2), prefixes(*lengths, length=12)
    check_fused(sim, token_ids(2, 12), literal=name == "llama" and 0 in lengths, train_mask=masks)


def test_gains_of_steps_of_other_lengths() -> None:
    """What a gain's gradient is made of, f(x), is the same value in all steps where x is."""
    sim = compiled("gpt2", n_steps=2, n_update_layers=1, descend="values,norm-gain", stack=1)
    check_fused(sim, token_ids(2, 12), train_mask=prefixes(3, 8, length=12))


def test_the_same_tokens_in_every_step_are_one_mask() -> None:
    sim, ids = compiled("gpt2", n_steps=2), token_ids(2, LENGTH)
    mask = prefixes(5)[0]
    right = run(sim, ids, train_mask=mask, return_before=True)
    for executor in ("fused", "literal"):
        found = run(sim, ids, executor, train_mask=mask.expand(2, -1, -1))
        assert relative_to_update(found.logits, right.logits, right.logits_before) < 1e-12
    other = run(sim, ids, train_mask=prefixes(5, 8))
    assert relative_to_update(other.logits, right.logits, right.logits_before) > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_explicit_fine_tuning_agrees(name: str) -> None:
    sim, ids = compiled(name, n_steps=3), token_ids(2, 12)
    masks = torch.rand(3, 2, 12, generator=torch.Generator().manual_seed(2)) < 0.6
    found = run(sim, ids, train_mask=masks, return_before=True)
    tuned = tune(capture(family(name).source.model), ids, masks, n_steps=3, inner_lr=0.02)
    assert relative_to_update(found.logits, tuned.logits, tuned.logits_before) < 1e-9


def test_parts_of_a_batch_keep_their_masks() -> None:
    sim, ids = compiled("gpt2", n_steps=2), token_ids(3, LENGTH)
    masks = torch.rand(2, 3, LENGTH, generator=torch.Generator().manual_seed(3)) < 0.6
    whole, parts = (run(sim, ids, train_mask=masks, max_batch=most) for most in (None, 1))
    assert torch.allclose(whole.logits, parts.logits, rtol=0, atol=1e-12)


def test_each_step_runs_what_its_own_tokens_need() -> None:
    """Backward and descent of a step are as long as its train part; a step without train tokens is left out."""
    sim, ids = compiled("gpt2", n_steps=2), token_ids(1, 12)
    for lengths in ((9, 4), (4, 9), (0, 5)):
        sim.plans.clear()
        run(sim, ids, train_mask=prefixes(*lengths, batch=1, length=12))
        (plan,) = sim.plans.values()
        backward = [op for op in plan.ops if op.phase in ("loss", "backward", "descent")]
        assert all(plan.lengths[op] == lengths[op.step] for op in backward if op.results[0].type.kind == "tokens")
        assert {op.step for op in backward} == {step for step, length in enumerate(lengths) if length}
        first = {plan.lengths[op] for op in plan.ops if op.phase == "forward" and op.step == 0 and op.layer == 0}
        assert lengths[0] == 0 or lengths[0] in first


def test_masks_that_do_not_fit() -> None:
    sim, ids = compiled("gpt2", n_steps=2), token_ids(2, LENGTH)
    for shape in ((3, 2, LENGTH), (2, 1, LENGTH), (2, 2, 4), (1, 2, LENGTH), (2, 2, 2, LENGTH), (LENGTH,)):
        with pytest.raises(InputError, match=r"must have the shape of input_ids, \(2, 9\), or \(2, 2, 9\), a mask for"):
            run(sim, ids, train_mask=torch.ones(shape))
