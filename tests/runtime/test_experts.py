"""Mixtures of experts: both interpreters, literal and fused execution agree, whatever the router's rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fused_cases import check_fused
from programs import check_agreement, mixture_like, simulator, three_ways
from tiny_models import token_ids

from tintc.ir.auxiliary.interpreter import Descent
from tintc.ir.text import print_program

ROUTERS: dict[str, dict[str, Any]] = {
    "softmax": {"chosen": 2},
    "softmax, renormalised": {"chosen": 3, "normalise": "sum"},
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
    "more experts than a slot is wide": {"chosen": 4, "experts": 29, "d_ff": 5, "layers": 1},
}


@pytest.mark.parametrize("name", ROUTERS)
def test_all_ways_agree(name: str) -> None:
    """fp64, 1e-9 of the update."""
    program, tensors = mixture_like(**ROUTERS[name])
    sim = simulator(program, tensors, inner_lr=0.02)
    ids = token_ids(2, 9, 11)
    check_agreement(three_ways(sim, program, tensors, ids, Descent(0.02)))
    check_fused(sim, ids)


def test_biases_steps_and_padding() -> None:
    """Two steps of a layer with biases, padding on either side; fp64, 1e-9 of the update."""
    program, tensors = mixture_like(chosen=2, normalise="sum", biases=True)
    sim = simulator(program, tensors, inner_lr=0.02, n_steps=2, n_update_layers=1)
    ids = token_ids(2, 9, 11)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    mask[1, 7:] = 0
    check_fused(sim, ids, attention_mask=mask)
    descent = Descent(0.02, n_steps=2, n_update_layers=1)
    check_agreement(three_ways(sim, program, tensors, ids, descent, attention_mask=mask))


def test_text_does_not_grow_with_the_number_of_experts() -> None:
    lengths = set()
    for experts in (12, 96):
        program, tensors = mixture_like(chosen=2, experts=experts, layers=1)
        lengths.add(len(print_program(simulator(program, tensors).program).replace(str(experts), "EE")))
    assert max(lengths) < 1.02 * min(lengths)
