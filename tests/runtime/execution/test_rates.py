"""Rates given at a call: per step, per layer, per example; both executors, generation, adapting. fp64, 1e-9."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fused_cases import compiled, relative_to_update, run, token_ids

from tintc.errors import OptionError
from tintc.runtime.model.causal_lm import TintForCausalLM

IDS = token_ids(3, 12)
STEPS = 2
BIG, SMALL = 2**-5, 2**-7  # stored rates are in fp32, which has these exactly


def sim_of(name: str, **options: Any) -> TintForCausalLM:
    return compiled(name, n_steps=STEPS, n_update_layers=2, inner_lr=0.02, **options)


@contextmanager
def stored(sim: TintForCausalLM, rates: dict[str, list[float]]) -> Iterator[None]:
    """The simulator with these rates of each step written into `rates.*`, for parameters whose name has the key."""
    found = {name: one for name, one in sim.named_parameters() if name.startswith("rates.")}
    kept = {name: one.detach().clone() for name, one in found.items()}
    with torch.no_grad():
        for name, one in found.items():
            for part, values in rates.items():
                if part in name:
                    one.copy_(torch.tensor(values))
        yield
        for name, one in found.items():
            one.copy_(kept[name])


CASES: dict[str, tuple[Any, dict[str, list[float]]]] = {
    "a number": (BIG, {"": [BIG, BIG]}),
    "per step": (torch.tensor([BIG, SMALL], dtype=torch.float64), {"": [BIG, SMALL]}),
    "per step, as a list": ([BIG, SMALL], {"": [BIG, SMALL]}),
    "a layer, the others stored": ({2: BIG}, {".2.": [BIG, BIG]}),
    "a layer per step, and the others": ({1: [0.0, BIG], "default": SMALL}, {"": [SMALL, SMALL], ".1.": [0.0, BIG]}),
    "all layers by default": ({"default": [SMALL, BIG]}, {"": [SMALL, BIG]}),
    "outside layers": ({-1: 0.5}, {"ln_f": [0.5, 0.5], "model.norm": [0.5, 0.5], "final_layer_norm": [0.5, 0.5]}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("executor", ["fused", "literal"])
def test_given_rates_are_stored_ones(case: str, executor: str) -> None:
    """Which fused execution has read; the next test has literal execution read them."""
    sim, (given, written) = sim_of("gpt2"), CASES[case]
    with stored(sim, written):
        wanted = run(sim, IDS, return_before=True)
    plain = run(sim, IDS)
    found = run(sim, IDS, executor, inner_lr=given)
    assert relative_to_update(found.logits, wanted.logits, wanted.logits_before) < 1e-9
    assert relative_to_update(plain.logits, wanted.logits, wanted.logits_before) > 1e-3


def test_both_executors_read_stored_rates() -> None:
    sim, (_, written) = sim_of("gpt2"), CASES["a layer per step, and the others"]
    with stored(sim, written):
        wanted, found = (run(sim, IDS, executor, return_before=True) for executor in ("fused", "literal"))
    assert relative_to_update(found.logits, wanted.logits, wanted.logits_before) < 1e-9


@pytest.mark.parametrize(
    ("executor", "update", "parts"),
    [("fused", "lazy", (1, 2)), ("fused", "materialised", (1, 2)), ("literal", "auto", (2,))],
)
def test_per_step_and_example(executor: str, update: str, parts: tuple[int, ...]) -> None:
    """Each example as if it were alone in fused execution, with its own rates of each step; also where autograd
    records, and in parts of the batch."""
    sim, rates = sim_of("llama"), torch.tensor([[BIG, SMALL, 0.0], [SMALL, 0.03, BIG]], dtype=torch.float64)
    found = run(sim, IDS, executor, update, inner_lr=rates, return_before=True)
    kept, sim.executor, sim.update = (sim.executor, sim.update), executor, update
    recorded = sim(IDS, inner_lr={"default": rates}).logits.detach()
    sim.executor, sim.update = kept
    for row in range(3):
        alone = run(sim, IDS[row : row + 1], inner_lr=rates[:, row])
        for logits in (found.logits, recorded):
            before = found.logits_before[row : row + 1]
            assert relative_to_update(logits[row : row + 1], alone.logits, before) < 1e-9
    for most in parts:
        cut = run(sim, IDS, executor, update, inner_lr=rates, max_batch=most)
        assert relative_to_update(cut.logits, found.logits, found.logits_before) < 1e-9


def test_another_compiled_simulator_is_the_same() -> None:
    """A rate given is the rate compiled, of a simulator that updates other layers too."""
    other = compiled("llama", n_steps=STEPS, n_update_layers=1, inner_lr=BIG)
    found, wanted = (
        run(sim, IDS, inner_lr=given, return_before=True)
        for sim, given in ((sim_of("llama"), {"default": BIG, 1: 0}), (other, None))
    )
    assert relative_to_update(found.logits, wanted.logits, wanted.logits_before) < 1e-9


GIVEN: list[Any] = [[BIG, SMALL], torch.tensor([[BIG], [SMALL]]), {2: BIG, "default": [SMALL, BIG]}]


@pytest.mark.parametrize("given", GIVEN, ids=["list", "tensor", "mapping"])
def test_adapting_and_generating(given: Any) -> None:
    """Greedily and with beams, whose rows are as many as there are steps: a rate stays each prompt's own."""
    sim, ids = sim_of("llama"), IDS[:1, :8]
    sim.executor = "fused"
    state = sim.adapt(ids, inner_lr=given)
    with torch.no_grad():
        wanted = run(sim, ids, return_before=True, inner_lr=given)
        found = sim(ids, state=state).logits
    assert relative_to_update(found, wanted.logits, wanted.logits_before) < 1e-9
    for beams in (1, 2):
        how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, "output_scores": True}
        how |= {"return_dict_in_generate": True}
        a, b = sim.generate(ids, inner_lr=given, **how), sim.generate(ids, state=state, **how)
        assert torch.equal(a.sequences, b.sequences)
        assert all(torch.allclose(x, y, rtol=0, atol=1e-9) for x, y in zip(a.scores, b.scores, strict=True))


def test_rates_per_example_and_beams() -> None:
    sim, rates = sim_of("gpt2"), [[0.3, 0.0], [0.2, 0.1]]
    sim.executor = "fused"
    how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    found = sim.generate(IDS[:2, :8], inner_lr=rates, **how)
    for row in range(2):
        alone = sim.generate(IDS[row : row + 1, :8], inner_lr=[one[row] for one in rates], **how)
        assert torch.equal(found[row], alone[0])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({0: BIG}, "rate for layer 0; this simulator updates the layers -1, 1, 2"),
        ({"2": BIG}, "rate for layer '2'"),
        ({True: BIG}, "rate for layer True"),
        ({2: -1.0}, "finite and not negative"),
        ({2: [BIG] * 4}, r"has shape \(4,\)"),
        ([BIG] * 4, "here B is 3 and N is 2"),
        (torch.zeros(3, 2), r"has shape \(3, 2\)"),
        (torch.tensor([BIG, float("inf")]), "finite and not negative"),
        ({2: "1e-3"}, "inner_lr is '1e-3'"),
    ],
)
def test_rates_that_are_none(given: Any, says: str) -> None:
    sim = sim_of("gpt2")
    for call in (lambda: sim(IDS, inner_lr=given), lambda: sim.generate(IDS, inner_lr=given, max_new_tokens=1)):
        with pytest.raises(OptionError, match=says):
            call()


@pytest.mark.parametrize("executor", ["fused", "literal"])
def test_one_dimension_says_what_it_is_of(executor: str) -> None:
    """With as many examples as steps it is of examples; a warning has the spelling of both. fp64."""
    sim = sim_of("gpt2")
    with pytest.warns(UserWarning, match=r"one per example. Write \[\[r, s, \.\.\.\]\], of shape \(1, 2\)"):
        unclear = run(sim, IDS[:STEPS], executor, inner_lr=[BIG, 0.0])
    by_example = run(sim, IDS[:2], executor, inner_lr=[[BIG, 0.0]], return_before=True)
    assert torch.equal(unclear.logits, by_example.logits)
    moved = (by_example.logits - by_example.logits_before).abs().amax((1, 2))
    assert float(moved[1]) < 1e-12 < 1e-3 < float(moved[0])
    by_step = run(sim, IDS[:2], executor, inner_lr=[[BIG], [0.0]])
    alone = run(sim, IDS[:1], executor, inner_lr=[BIG, 0.0])
    assert float((by_step.logits[0] - alone.logits[0]).abs().max()) < 1e-12
    assert float((by_step.logits[1] - by_example.logits[1]).abs().max()) > 1e-3
