"""The gradient of a router's logits is autograd's, whatever its rule. fp64, 1e-12 of its length."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tintc.ir.core import Value, tokens
from tintc.ir.router import routing_gradient, routing_weights
from tintc.ir.simulator import Route

EXPERTS = 6
RULES: dict[str, dict[str, Any]] = {
    "softmax": {"chosen": 2, "gains": "gains"},
    "renormalised": {"chosen": 3, "normalise": "sum", "eps": 0.1, "factor": 2.5},
    "held at a floor": {"chosen": 2, "normalise": "sum", "floor": 0.6},
    "top k, then softmax": {"chosen": 2, "scores": "identity", "normalise": "softmax"},
    "sigmoid, groups": {"chosen": 2, "scores": "sigmoid", "bias": "bias", "groups": 3, "kept_groups": 2},
    "sigmoid of the chosen": {"chosen": 2, "scores": "identity", "weigh": "sigmoid", "normalise": "sum"},
    "root of softplus": {"chosen": 3, "scores": "sqrt_softplus", "normalise": "sum"},
    "sparse mixer": {"chosen": 2, "scores": "sparse_mixer", "jitter": 0.4},
}


@pytest.mark.parametrize("name", RULES)
def test_it_is_autograd_s(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    z, dr = (torch.randn(2, 20, EXPERTS, dtype=torch.float64, generator=generator) for _ in range(2))
    kind = tokens(EXPERTS)
    options = Route(operands=(Value("z", kind),), results=(Value("r", kind),), **RULES[name])
    options.verify()
    vectors = {key: torch.randn(EXPERTS, dtype=torch.float64, generator=generator) for key in options.vectors()}
    leaf = z.clone().requires_grad_()
    right = torch.autograd.grad(routing_weights(options, leaf, vectors), leaf, dr)[0]
    assert float(right.norm()) > 0
    assert float((routing_gradient(options, z, dr, vectors) - right).norm()) < 1e-12 * float(right.norm())
