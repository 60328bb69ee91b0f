"""Momentum, normalised steps, decay: interpreters, literal and fused execution agree (fp64, 1e-9 of the update)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fused_cases import check_every_way, run
from programs import gpt_like, hybrid_like, mixture_like, relative_to_update, simulator
from tiny_models import token_ids
from torch import Tensor

from tintc.analysis.capture_points import sized
from tintc.errors import OptionError
from tintc.ir.auxiliary.interpreter import Descent
from tintc.ir.functions import FiniteDifference
from tintc.options import Options
from tintc.runtime.adaptation.continuation import base_weights
from tintc.runtime.adaptation.state import materialised
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.causal_lm import TintForCausalLM

MAKERS: dict[str, Callable[..., Any]] = {
    "dense": gpt_like,
    "one layer": lambda: gpt_like(layers=1),
    "experts": lambda: mixture_like(layers=1, chosen=2, normalise="sum", biases=True),
    "recurrence": lambda: hybrid_like(key_heads=2),
}
RULES: dict[str, dict[str, Any]] = {
    "momentum": {"optimizer": "momentum", "inner_lr": 0.02},
    "decay": {"decay": 0.5, "inner_lr": 0.02},
    "by weight": {"optimizer": "normalized", "inner_lr": 0.3},
    "by all": {"optimizer": "normalized", "normalize": "all", "momentum": 0.5, "decay": 0.3, "inner_lr": 0.5},
}
RULES["by weight, of all"] = RULES["by weight"] | {"gradient": "full", "descend": "all"}
IDS = token_ids(2, 9, 11)
PADDED = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0, 0]])
GROUPS = "values,out,ffn,norm-bias,norm-gain"


@cache
def made(kind: str, rule: str, **options: Any) -> TintForCausalLM:
    program, tensors = MAKERS[kind]()
    return simulator(program, tensors, **({"n_steps": 2, "descend": GROUPS} | RULES[rule] | options))


CASES = [
    *((kind, "by all") for kind in ("dense", "experts", "recurrence")),
    *(("one layer", rule) for rule in RULES if rule != "by all"),
]


@pytest.mark.parametrize(("kind", "rule"), CASES)
def test_all_ways_agree(kind: str, rule: str) -> None:
    """Two steps, padding on either side, gains and biases of norms among what descends."""
    program, tensors = MAKERS[kind]()
    chosen: dict[str, Any] = {"descend": GROUPS} | RULES[rule]
    sim, options = made(kind, rule), Options(**chosen)
    how: dict[str, Any] = {"momentum": options.kept_momentum, "norm_of": options.norm_of, "decay": options.decay}
    how |= {"full": options.gradient == "full", "difference": FiniteDifference(options.scheme, options.fd_step or 0.0)}
    descent = Descent(options.inner_lr, n_steps=2, groups=options.groups, **how)
    check_every_way(sim, program, tensors, IDS, descent, attention_mask=PADDED)


def test_a_rule_by_hand() -> None:
    """Two steps of one parameter, from its gradients: what is written in construction.md."""
    sim = made("dense", "by all", n_update_layers=1)
    name = "h.1.ffn.down"
    with sim.capture("step?.gradients.*", "step?.updates.*") as seen:
        run(sim, IDS, "fused")
    steps = [{k.split(".", 2)[2]: g for k, g in seen.items() if k.startswith(f"step{s}.gradients.")} for s in (0, 1)]
    sums = [steps[0], {k: 0.5 * steps[0][k] + g for k, g in steps[1].items()}]
    moved = torch.zeros(())
    for step, total in enumerate(sums):
        norm = torch.stack([g.flatten(1).norm(dim=1) for g in total.values()]).norm(dim=0)
        update = -0.5 * (total[f"{name}.weight"] / norm[:, None, None] + 0.3 * moved)
        torch.testing.assert_close(seen[f"step{step}.updates.{name}.weight"], update, rtol=1e-9, atol=0)
        moved = moved + update


@pytest.mark.parametrize("executor", ["fused", "literal"])
def test_what_has_no_gradient_stays(executor: str) -> None:
    """An example without train tokens is not updated: its gradient is zero, and so is its normalised step."""
    sim, mask = made("one layer", "by weight"), torch.tensor([[1] * 5 + [0] * 4, [0] * 9])
    out = run(sim, IDS, executor, train_mask=mask, return_before=True)
    torch.testing.assert_close(out.logits[1], out.logits_before[1], rtol=0, atol=1e-12)
    assert float((out.logits[0] - out.logits_before[0]).norm()) > 0.1


def test_rates_per_step_layer_and_example() -> None:
    """Given as tensors and stored: both executors, each example as if it were alone."""
    rule = "by all"
    sim, ids = made("dense", rule), token_ids(3, 9, 11)
    rates = torch.tensor([[0.25, 0.125, 0.1875], [0.0625, 0.375, 0.0]], dtype=torch.float64)
    given = {1: rates, "default": rates / 2}
    both, literal = (run(sim, ids, executor, inner_lr=given, return_before=True) for executor in ("fused", "literal"))
    assert relative_to_update(literal.logits, both.logits, both.logits_before) < 1e-9
    for row in (0, 2):
        alone = {layer: rate[:, row] for layer, rate in given.items()}
        one = run(sim, ids[row : row + 1], inner_lr=alone)
        assert relative_to_update(both.logits[row], one.logits[0], both.logits_before[row]) < 1e-9
    program, tensors = gpt_like()
    other = simulator(program, tensors, **({"n_steps": 2, "descend": GROUPS} | RULES[rule]))
    with torch.no_grad():
        for name, rate in other.named_parameters():
            if name.startswith("rates."):
                assert rate.shape == (2,) and rate.requires_grad
                rate.copy_(rates[:, 0] / (1 if name.startswith("rates.h.1.") else 2))
    stored = run(other, ids[:1], "fused")
    given = {1: rates[:, 0], "default": rates[:, 0] / 2}
    right = run(sim, ids[:1], "fused", inner_lr=given, return_before=True)
    assert relative_to_update(stored.logits, right.logits, right.logits_before) < 1e-9


@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_both_executors_show_the_same(kind: str) -> None:
    """Every capture point there is, to 1e-9 of a value's size."""
    sim = made(kind, "by all")
    shown: dict[str, dict[str, Tensor]] = {}
    for executor, update in (("literal", "auto"), ("fused", "lazy"), ("fused", "materialised")):
        with sim.capture("*") as seen:
            run(sim, IDS, executor, update)
        shown[f"{executor} {update}"] = dict(seen)
    right = shown.pop("literal auto")
    assert any("updates" in name for name in right) and any("gradients" in name for name in right)
    for values in shown.values():
        assert list(values) == list(right)
        for point in sim.capture_points():
            found, value = values[point.name], right[point.name]
            assert tuple(found.shape) == sized(point.shape, 2, 9), point
            assert float((found - value).norm()) <= 1e-9 * float(value.norm()), point


@pytest.mark.parametrize("kind", ["one layer", "experts"])
def test_states(kind: str, tmp_path: Path) -> None:
    """A state predicts as the run does, in either executor, by example, and from a file."""
    sim = made(kind, "by all")
    right = run(sim, IDS, return_before=True)
    for executor in ("literal", "fused"):
        sim.executor = executor
        with torch.no_grad():
            state = sim.adapt(IDS)
        state.save(tmp_path / f"{executor}.safetensors")
        read = AdaptedState.load(tmp_path / f"{executor}.safetensors", sim)
        for one in (state, read):
            found = run(sim, IDS, state=one).logits
            assert relative_to_update(found, right.logits, right.logits_before) < 1e-9
        found = run(sim, IDS[1:], state=state.example(1)).logits
        assert relative_to_update(found, right.logits[1:], right.logits_before[1:]) < 1e-9
    sim.executor = "literal"


def test_decay_draws_back_to_the_stored_weights() -> None:
    """Also where a run starts from a state, in either executor: without gradients what was learnt shrinks by
    (1 - rate decay) in every step, and with them both give the same."""
    sim, nothing = made("one layer", "by all"), torch.zeros(2, 9)
    found: list[Tensor] = []
    for executor in ("fused", "literal"):
        sim.executor = executor
        with torch.no_grad():
            state = sim.adapt(IDS)
            later, more = sim.adapt(IDS, train_mask=nothing, state=state), sim.adapt(IDS.flip(0), state=state)
        stored = base_weights(sim)
        for value, w in later.weights.items():
            new, old, start = materialised(w).weight, materialised(state.weights[value]).weight, stored[value].weight
            assert new is not None and old is not None and start is not None
            torch.testing.assert_close(new - start, 0.85**2 * (old - start), rtol=1e-9, atol=1e-12)
        found.append(run(sim, IDS, "fused", state=more).logits)
    sim.executor = "literal"
    before = run(sim, IDS, "fused", return_before=True).logits_before
    assert relative_to_update(found[0], found[1], before) < 1e-9


@pytest.mark.parametrize("rule", ["by weight", "by all"])
def test_gradcheck_through_the_steps(rule: str) -> None:
    """An outer loss reaches rates, prefixes and tables through both steps: finite differences, to 1e-4 relative.

    Literal execution has the same gradients as fused, to 1e-8.
    """
    program, tensors = gpt_like(layers=1)
    sim = simulator(program, tensors, n_steps=2, descend=GROUPS, **RULES[rule])
    ids = IDS[:, :7]
    wanted = ("rates.h.0.ffn.down", "prefixes.h.0.ffn.up.bias", "prefixes.h.0.attn.v.weight", "prefixes.h.0.ln2.gain")
    parameters = {name: p for name, p in sim.named_parameters() if name in wanted or name.startswith("tables.wpe")}
    assert len(parameters) == len(wanted) + 1

    def loss(*_: Tensor) -> Tensor:
        found = sim(ids, labels=ids).loss
        assert found is not None
        return found

    gradients: dict[str, dict[str, Tensor]] = {}
    for executor, update in (("literal", "auto"), ("fused", "lazy"), ("fused", "materialised")):
        sim.executor, sim.update = executor, update
        sim.zero_grad()
        loss().backward()
        found = {name: p.grad.clone() for name, p in sim.named_parameters() if p.grad is not None}
        gradients[f"{executor} {update}"] = {name: g for name, g in found.items() if name.startswith(("r", "p", "t"))}
        if executor == "fused":
            inputs = tuple(parameters.values())
            assert torch.autograd.gradcheck(loss, inputs, fast_mode=True, atol=1e-7, rtol=1e-4)
    right = gradients.pop("literal auto")
    assert all(float(right[name].norm()) > 0 for name in right if name.startswith("rates."))
    for mode, found in gradients.items():
        assert found.keys() == right.keys()
        for name, gradient in found.items():
            assert float((gradient - right[name]).norm()) <= 1e-8 * float(right[name].norm()) + 1e-12, (mode, name)


def test_gradients_reach_sums_and_updates() -> None:
    """Of the logits' square with respect to all that the steps show, the same in both executors."""
    program, tensors = gpt_like(layers=1)
    sim = simulator(program, tensors, n_steps=2, descend=GROUPS, **RULES["by all"])
    found: list[dict[str, Tensor]] = []
    for sim.executor in ("fused", "literal"):
        with sim.capture("step?.gradients.*", "step?.updates.*") as seen:
            out = sim(IDS[:, :6])
        gradients = torch.autograd.grad(out.logits.square().sum(), list(seen.values()))
        found.append(dict(zip(seen, gradients, strict=True)))
    assert all(value.any() for name, value in found[1].items() if "step0" in name)
    for name, gradient in found[1].items():
        assert float((found[0][name] - gradient).norm()) <= 1e-9 * float(gradient.norm()), name


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"optimizer": "adam"}, "The optimizer 'adam' is unknown; choose one of sgd, momentum, normalized."),
        ({"normalize": "weight"}, "The optimizer sgd divides by no norm; leave normalize out, or choose normalized."),
        ({"optimizer": "normalized", "normalize": "layer"}, "The normalisation 'layer' is unknown"),
        ({"momentum": 0.9}, "The optimizer sgd has no momentum; leave it out, or choose momentum or normalized."),
        ({"optimizer": "momentum", "momentum": 0.0}, "The momentum is 0, which is the optimizer sgd"),
        ({"optimizer": "momentum", "momentum": 1.0}, "it must be at least 0 and less than 1"),
        ({"decay": -0.1}, "The decay is -0.1; it must be a finite number, zero or more."),
        ({"semantics": "paper-code", "optimizer": "normalized"}, "The semantics paper-code has plain steps"),
        ({"semantics": "paper-code", "decay": 0.1}, "The semantics paper-code has plain steps"),
    ],
)
def test_what_cannot_be_combined(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError) as caught:
        Options(**options)
    assert says in str(caught.value)


def test_rates_unless_told_otherwise() -> None:
    rules: list[dict[str, Any]] = [{}, {"optimizer": "momentum"}, {"optimizer": "normalized"}]
    assert [Options(**rule).inner_lr for rule in (*rules, {**rules[2], "normalize": "all"})] == [1e-4, 1e-4, 0.01, 0.05]
    assert Options(optimizer="normalized", inner_lr=0.5).inner_lr == 0.5
