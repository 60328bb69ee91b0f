"""Options of a router are found from what it does: every combination in use is read back from its own weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tintc.frontend.experts.routing import Behaviour, options_of, random_logits, random_vector
from tintc.ir.router import RouterOptions, routing_weights

EXPERTS = 12
NUMBERS = (1.0, 2.0, 4.0, 3.0, 12.0, 2.5, 0.02)
GROUPED = {"groups": 4, "kept_groups": 2}
RULES: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax, renormalised": {"normalise": "sum"},
    "with a term in the sum": {"scores": "sigmoid", "normalise": "sum", "eps": 1e-20},
    "with a floor of the sum": {"scores": "sigmoid", "bias": "1", "normalise": "sum", "floor": 1e-12},
    "a bias that chooses": {"scores": "sigmoid", "bias": "0", "normalise": "sum"},
    "groups by their largest": {"bias": "1", "groups": 4},
    "groups by their two largest": {"scores": "sigmoid", "bias": "0", "group_score": "top2", **GROUPED},
    "gains": {"normalise": "sum", "gains": "1"},
    "gains beside a bias": {"scores": "sigmoid", "gains": "1", "bias": "0", "factor": 2.5},
    "softplus": {"scores": "sqrt_softplus", "normalise": "sum"},
    "the chosen scores' softmax": {"scores": "sigmoid", "normalise": "softmax"},
    "the logits": {"scores": "identity"},
    "sparse mixer": {"scores": "sparse_mixer", "jitter": 0.01},
    "a factor that is no number of the graph": {"factor": 1.7},
}


def seen(options: RouterOptions) -> Behaviour:
    z = random_logits(EXPERTS)
    vectors = {str(place): random_vector(EXPERTS, place) for place in range(2)}
    weights = routing_weights(options, z, {key: vectors[name] for key, name in options.vectors().items()})
    numbers = (*NUMBERS, *filter(None, (options.eps, options.floor)))
    return Behaviour(z, weights, options.chosen, numbers, vectors)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("chosen", [2, 3])
def test_every_rule_is_read_back(rule: str, chosen: int) -> None:
    options = RouterOptions(chosen=chosen, **RULES[rule])
    found = options_of(seen(options))
    assert found is not None
    assert found.factor == pytest.approx(options.factor, rel=1e-13)
    found.factor = options.factor
    assert found.options() == options.options()


def test_softmax_of_chosen_logits_is_a_renormalised_softmax() -> None:
    """One way of writing for both; 1e-12 relative."""
    options = RouterOptions(chosen=2, scores="identity", normalise="softmax")
    found = options_of(seen(options))
    assert found is not None and (found.scores, found.normalise) == ("softmax", "sum")
    z = torch.randn(5, EXPERTS, dtype=torch.float64)
    assert torch.allclose(routing_weights(found, z, {}), routing_weights(options, z, {}), rtol=1e-12, atol=0)


def squared(z: Tensor) -> Tensor:
    return routing_weights(RouterOptions(chosen=2), z, {}).square()


def smallest(z: Tensor) -> Tensor:
    return routing_weights(RouterOptions(chosen=2), -z, {})


@pytest.mark.parametrize("other", [squared, smallest])
def test_other_rules_are_not_taken_for_one(other: Any) -> None:
    known = seen(RouterOptions(chosen=2))
    assert options_of(Behaviour(known.logits, other(known.logits), 2, NUMBERS, known.vectors)) is None


def test_options_of_other_layers_are_tried_first() -> None:
    """Where several do the same: a bias that is none to speak of."""
    options = RouterOptions(chosen=2)
    likely = [RouterOptions(chosen=2, bias="7"), RouterOptions(chosen=2, scores="identity", normalise="softmax")]
    renormalised = seen(likely[1])
    assert options_of(seen(options), likely) is not None
    assert options_of(renormalised, likely) is likely[1]
