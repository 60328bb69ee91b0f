"""Theorems F.4, G.4 and G.7: how far the first-order derivatives are from the exact ones, in fp64.

Bounds are absolute and carry what the difference loses to rounding; slopes in eps are of a log-log fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tintc.ir.functions import ACTIVATIONS, FiniteDifference, norm_scale, normalise

FEW = settings(max_examples=60, deadline=None, derandomize=True)
UNIT = 2.0**-53
SMOOTH = ("gelu", "gelu_tanh", "quick_gelu", "silu", "tanh")
KINDS, SCHEMES = st.sampled_from(["layer", "rms"]), st.sampled_from(["fixed", "token"])
SIZES, EPSILONS, SEEDS = st.floats(-4, 4), st.floats(-5, -2), st.integers(0, 999)
"""Powers of ten of the sizes of x and dy, and of eps."""
RANGE = (1e-2, 1e-3, 1e-4, 1e-5)
"""Where slopes are measured."""


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def exact(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    """``J_f(x)^T g`` by autograd."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x), x, g)[0]


def slope(errors: list[float], steps: tuple[float, ...] = RANGE) -> float:
    """Of the least-squares line through (log step, log error)."""
    a, b = torch.tensor(steps).log().double(), torch.tensor(errors).log().double()
    return float(((a - a.mean()) * (b - b.mean())).sum() / (a - a.mean()).square().sum())


@FEW
@given(KINDS, SCHEMES, st.integers(2, 300), SIZES, SIZES, EPSILONS, st.sampled_from([0.0, 1e-5]), SEEDS)
def test_norm_backward(
    kind: str, scheme: str, width: int, x_size: float, g_size: float, log_eps: float, norm_eps: float, seed: int
) -> None:
    """F.4: ``|dx - exact| <= eps D^1.5 sigma^-2 |gamma dy|^2``, and even with D^-0.5 in place of D^1.5.

    f is sqrt(D) times a unit vector w / |w|, with ``|w| = sigma sqrt(D)`` (the norm's own eps adds a constant
    coordinate to w). The second derivative of w / |w| along g has length at most ``2 / sqrt(3) |g|^2 / |w|^2``, and
    the remainder of a step h is half of h times that, at some point on the way, where sigma is at least 3/4 of what it
    is at x if ``h |g| <= sqrt(D) sigma / 4``. With the step of `token`, ``h = eps sigma / rms(g)``, the bound is
    ``eps |g| / sigma``.
    """
    eps, x = 10**log_eps, 10**x_size * randn(3, width, seed=seed)
    gain, dy = randn(width, seed=seed + 1), 10**g_size * randn(3, width, seed=seed + 2)
    sigma, g = norm_scale(kind, x, norm_eps), gain * dy
    size = g.norm(dim=-1, keepdim=True)
    step = eps * sigma / g.square().mean(-1, keepdim=True).sqrt() if scheme == "token" else torch.full_like(sigma, eps)
    near = step * size <= width**0.5 * sigma / 4

    def f(z: Tensor) -> Tensor:
        return normalise(kind, z, norm_eps)

    apart = (FiniteDifference(scheme, eps).derivative(f, x, g, sigma) - exact(f, x, g)).norm(dim=-1, keepdim=True)
    rounding = 16 * UNIT * width**0.5 * (1 + x.norm(dim=-1, keepdim=True) / sigma) / step
    sharp = step * width**-0.5 * sigma**-2 * size**2
    assert bool((apart <= sharp + rounding)[near].all())
    assert bool((sharp <= step * width**1.5 * sigma**-2 * size**2).all())
    if scheme == "token":
        torch.testing.assert_close(sharp, eps * size / sigma)
        assert bool(near.all())


@pytest.mark.parametrize("scheme", ["fixed", "token"])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norm_backward_is_first_order(kind: str, scheme: str) -> None:
    """Slope 1 in eps, to 2 %."""
    x, g = randn(8, 40, seed=0), randn(8, 40, seed=1)
    right, sigma = exact(lambda z: normalise(kind, z, 1e-5), x, g), norm_scale(kind, x, 1e-5)
    found = [FiniteDifference(scheme, eps).derivative(lambda z: normalise(kind, z, 1e-5), x, g, sigma) for eps in RANGE]
    assert slope([float((dx - right).norm()) for dx in found]) == pytest.approx(1, abs=0.02)


def test_the_error_of_a_norm_points_against_x() -> None:
    """Why it adds up over tokens that share large channels: most of it is ``-h/2 |Jg|^2 x / D``, along x, downwards.

    RMSNorm of width 500, gradients that do not know x: relative error eps / 2, a cosine with -x above 0.99.
    """
    x, g = randn(50, 500, seed=0), randn(50, 500, seed=1)
    right = exact(lambda z: normalise("rms", z, 0.0), x, g)
    f = FiniteDifference("token", 1e-3)
    apart = f.derivative(lambda z: normalise("rms", z, 0.0), x, g, norm_scale("rms", x, 0.0)) - right
    cosine = -torch.nn.functional.cosine_similarity(apart, x, dim=-1)
    assert float(cosine.min()) > 0.9 and float(cosine.median()) > 0.99
    relative = apart.norm(dim=-1) / right.norm(dim=-1)
    assert float(relative.min()) > 4.9e-4 and float(relative.max()) < 5.5e-4


def curvature(name: str) -> float:
    """sup |act''|, from a fine grid; what lies between its points is less than 1 % more."""
    x = torch.linspace(-30, 30, 60_001, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(ACTIVATIONS[name](x).sum(), x, create_graph=True)
    return 1.01 * float(torch.autograd.grad(first.sum(), x)[0].abs().max())


CURVATURE = {name: curvature(name) for name in (*SMOOTH, "relu2")}


@FEW
@given(st.sampled_from(sorted(CURVATURE)), SCHEMES, st.floats(-2, 1), SIZES, EPSILONS, SEEDS)
def test_activation_backward(name: str, scheme: str, x_size: float, g_size: float, log_eps: float, seed: int) -> None:
    """G.4: in every coordinate ``|dx - act'(x) dy| <= eps/2 sup|act''| dy^2``, eps being the step taken."""
    eps, act = 10**log_eps, ACTIVATIONS[name]
    x, dy = 10**x_size * randn(3, 50, seed=seed), 10**g_size * randn(3, 50, seed=seed + 1)
    step = eps / dy.square().mean(-1, keepdim=True).sqrt() if scheme == "token" else torch.full((3, 1), eps).double()
    apart = (FiniteDifference(scheme, eps).derivative(act, x, dy) - exact(act, x, dy)).abs()
    slopes = exact(act, x, torch.ones_like(x)).abs()
    rounding = 16 * UNIT * (1 + act(x).abs() + act(x + step * dy).abs() + slopes * x.abs()) / step
    assert bool((apart <= 0.5 * step * CURVATURE[name] * dy.square() + rounding).all())


@pytest.mark.parametrize("name", SMOOTH)
def test_activation_backward_is_first_order(name: str) -> None:
    """Slope 1 in eps, to 2 %."""
    x, dy, act = randn(400, seed=0), randn(400, seed=1), ACTIVATIONS[name]
    right = exact(act, x, dy)
    found = [FiniteDifference("fixed", eps).derivative(act, x, dy) for eps in RANGE]
    assert slope([float((dx - right).norm()) for dx in found]) == pytest.approx(1, abs=0.02)


@FEW
@given(SCHEMES, st.floats(-3, 1), st.floats(-2, 2), EPSILONS, SEEDS)
def test_relu_backward(scheme: str, x_size: float, g_size: float, log_eps: float, seed: int) -> None:
    """G.7: exact where ``|x| > eps |dy|``; elsewhere off by at most |dy|, which bounds the norm of the whole error."""
    eps = 10**log_eps
    x, dy = 10**x_size * randn(3, 200, seed=seed), 10**g_size * randn(3, 200, seed=seed + 1)
    step = eps / dy.square().mean(-1, keepdim=True).sqrt() if scheme == "token" else torch.full((3, 1), eps).double()
    apart = (FiniteDifference(scheme, eps).derivative(torch.relu, x, dy) - exact(torch.relu, x, dy)).abs()
    rounding, near = 8 * UNIT * (x.abs() + step * dy.abs()) / step, x.abs() <= step * dy.abs()
    assert bool((apart <= rounding)[~near].all())
    assert bool((apart <= dy.abs() + rounding)[near].all())
    assert float(apart.norm()) <= float((dy * near).norm() + rounding.norm())


def test_where_relu_is_not_exact() -> None:
    """The share of such coordinates is proportional to eps: slope 1 to 10 % over 4e5 of them."""
    x, dy = randn(400_000, seed=0), randn(400_000, seed=1)
    right, shares = exact(torch.relu, x, dy), []
    for eps in RANGE[:3]:
        dx = FiniteDifference("fixed", eps).derivative(torch.relu, x, dy)
        wrong = (dx - right).abs() > 1e-9
        assert bool((x.abs() <= eps * dy.abs())[wrong].all())
        shares.append(float(wrong.double().mean()))
    assert slope(shares, RANGE[:3]) == pytest.approx(1, abs=0.1)
    assert shares[0] == pytest.approx(1e-2 / math.pi, rel=0.1), "half of P(|x| < eps |dy|), which is 2 eps / pi"
