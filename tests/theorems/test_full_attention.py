"""How far the full gradient of attention is from autograd's (construction.md, section 4.4). fp64.

The error of central differences is of second order in eps, that of one-sided ones of first order.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tintc.ir.core import Value, tokens
from tintc.ir.functions import FiniteDifference, masked_softmax, merge_heads, split_heads
from tintc.ir.scores import attention_gradients, attention_probabilities
from tintc.ir.simulator import AttentionFullBackward
from tintc.ir.simulator.shared.softmax_slopes import softmax_slopes

POSITIONS = torch.arange(3, 14)[None].expand(2, -1)
SEES = torch.ones(2, 11, 11, dtype=torch.bool)
SEES[0, :, :2] = False
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cap": {"soft_cap": 1.3},
    "alibi": {"slopes": (0.5, 0.1, 0.3, -0.2)},
    "window": {"window": 3},
    "rotary": {"inv_freq": "inv_freq", "rotary_style": "interleaved"},
    "sinks": {"sinks": "sinks", "query_scale": "query_scale", "gain": "gain"},
}


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


VECTORS = {
    "inv_freq": torch.tensor([0.7, 0.2], dtype=torch.float64),
    "gain": randn(6, seed=1),
    "query_scale": 1 + randn(14, seed=2).square(),
    "sinks": randn(4, seed=3),
}


def gradients(options: dict[str, Any], scheme: str, eps: float) -> tuple[list[Tensor], list[Tensor]]:
    """(dq, dk, dv) of four heads of six that share two heads of keys, and of values of five; autograd's beside them."""
    widths = (24, 12, 10)
    grad = Value("dy", tokens(20))
    values = tuple(Value(name, tokens(width)) for name, width in zip("qkv", widths, strict=True))
    op = AttentionFullBackward(
        operands=(grad, *values),
        results=tuple(Value(f"d{value.name}", value.type) for value in values),
        n_heads=4,
        n_kv_heads=2,
        head_dim=6,
        value_dim=5,
        scale=0.6,
        scheme=scheme,
        fd_step=eps,
        **options,
    )
    op.verify()
    q, k, v = (randn(2, 11, width, seed=seed).requires_grad_() for seed, width in enumerate(widths, 7))
    vectors = {key: VECTORS[name] for key, name in op.vectors().items()}
    weights = attention_probabilities(op, q, k, SEES, POSITIONS, vectors)
    y = merge_heads(weights @ op.by_query_head(split_heads(v, 2)))
    dy = 1e-3 * randn(2, 11, 20, seed=5)
    exact = torch.autograd.grad(y, (q, k, v), dy)
    difference = FiniteDifference(scheme, eps)
    with torch.no_grad():
        approximate = attention_gradients(op, difference, dy, q, k, v, SEES, POSITIONS, vectors)
    return [*approximate], [*exact]


def error(approximate: Tensor, exact: Tensor) -> float:
    return float((approximate - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", OPTIONS)
def test_the_error_is_of_the_order_that_is_claimed(name: str) -> None:
    for scheme, order in (("central", 2), ("token", 1)):
        coarse, fine = (gradients(OPTIONS[name], scheme, eps) for eps in (3e-2, 3e-3))
        for part in range(2):
            errors = [error(approximate[part], exact[part]) for approximate, exact in (coarse, fine)]
            assert 0.7 * 10**order < errors[0] / errors[1] < 1.4 * 10**order, (scheme, "qk"[part], errors)
        (_, _, dv), (_, _, right) = fine
        assert error(dv, right) < 1e-12
    approximate, exact = gradients(OPTIONS[name], "central", 3e-3)
    assert max(map(error, approximate, exact)) < 2e-6


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from(["central", "token", "fixed"]),
    st.integers(1, 9),
    st.booleans(),
    st.floats(-6, 3),
    st.integers(0, 99),
)
def test_the_fused_difference_of_a_softmax(scheme: str, m: int, beside: bool, size: float, seed: int) -> None:
    """It is the difference of two softmaxes, to what that loses to cancellation; a row without a gradient has none."""
    scores = 3 * randn(1, 2, 4, m, seed=seed)
    sinks = randn(2, seed=seed + 1) if beside else None
    seen = torch.ones(1, 1, 4, m, dtype=torch.bool).tril(m - 4) if m >= 4 else torch.ones(1, 1, 4, m, dtype=torch.bool)
    if scheme == "fixed":
        size = min(size, 0.0)
    c = (10**size * randn(1, 2, 4, m, seed=seed + 2)).masked_fill(~seen, 0.0)
    c[0, 0, 1] = 0
    difference = FiniteDifference(scheme, 1e-3)
    weights = masked_softmax(scores, seen, sinks)
    defined = difference.derivative(lambda s: masked_softmax(s, seen, sinks), scores, c, c.shape[-1] ** -0.5)
    fused = softmax_slopes(difference, weights, c, beside)
    lost = 1e-12 * c.norm(dim=-1, keepdim=True)
    if scheme == "fixed":
        lost = torch.full_like(c, 1e-12)
    assert bool(((fused - defined).abs() <= lost).all())
    assert not bool(fused[0, 0, 1].any())


def test_gradients_too_small_to_be_squared_in_fp32() -> None:
    weights = torch.full((1, 1, 1, 4), 0.25)
    for scheme in ("central", "token"):
        for size in (0.0, 1e-30, 1e-22, 1e-15):
            c = size * torch.tensor([[[[1.0, -2.0, 3.0, 0.5]]]])
            slopes = softmax_slopes(FiniteDifference(scheme, 1e-3), weights, c, False)
            exact = weights * (c - c.mean())
            assert bool(((slopes - exact).abs() <= 2e-2 * size).all())
