"""The shared mathematics against torch and transformers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from tintc.ir.functions import (
    ACTIVATIONS,
    GATES_ONLY,
    KINKED,
    FiniteDifference,
    alibi,
    causal_mask,
    masked_softmax,
    merge_heads,
    norm_scale,
    normalise,
    rotate,
    split_heads,
)

QUICK = settings(max_examples=25, deadline=None, derandomize=True)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@QUICK
@given(st.integers(1, 40), st.sampled_from([1e-12, 1e-6, 1e-5, 1.0]), st.integers(0, 99))
def test_norms_are_torch_s(width: int, eps: float, seed: int) -> None:
    """fp64, 1e-12 absolute."""
    x = 3 * randn(4, width, seed=seed) + 1
    layer = torch.nn.functional.layer_norm(x, (width,), eps=eps)
    torch.testing.assert_close(normalise("layer", x, eps), layer, rtol=1e-12, atol=1e-9 if width == 1 else 1e-12)
    rms = torch.nn.functional.rms_norm(x, (width,), eps=eps)
    torch.testing.assert_close(normalise("rms", x, eps), rms, rtol=1e-12, atol=1e-12)


def test_activations_map_zero_to_zero() -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    assert {name for name, f in ACTIVATIONS.items() if bool((f(zero) != 0).any())} == GATES_ONLY


@pytest.mark.parametrize("fn", KINKED)
def test_slopes_at_kinks_are_autograd_s(fn: str) -> None:
    """Central differences spare these: exact however near the kink, where any difference would be half of it off."""
    x = torch.tensor([-3.0, -1 - 1e-9, -1e-9, 1e-9, 0.4, 1 - 1e-9, 1 + 1e-9, 2.0], dtype=torch.float64)
    x, g = x.requires_grad_(), torch.linspace(-2, 3, 8, dtype=torch.float64)
    (right,) = torch.autograd.grad(ACTIVATIONS[fn](x), x, g)
    central = FiniteDifference("central", 3e-3)
    torch.testing.assert_close(central.of_activation(fn, x.detach(), g), right, rtol=0, atol=1e-15)
    crossing = central.derivative(ACTIVATIONS[fn], x.detach(), g)
    smallest = {"relu2": 1e-4, "negexp": 1e-4}
    assert float((crossing - right).abs().max()) > smallest.get(fn, 0.2)


def test_every_activation_with_a_kink_is_known() -> None:
    """Slopes, and slopes of slopes, differ little between neighbouring points unless there is a kink between them."""
    x = torch.linspace(-3, 3, 6001, dtype=torch.float64).add(3e-4).requires_grad_()
    jumps = {}
    for name, f in ACTIVATIONS.items():
        (slope,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
        second = torch.zeros_like(x)
        if slope.requires_grad:
            (second,) = torch.autograd.grad(slope.sum(), x)
        jumps[name] = max(float(values.detach().diff().abs().max()) for values in (slope, second))
    assert {name for name, jump in jumps.items() if jump > 0.1} == KINKED.keys()
    assert all(jump < 0.01 or jump > 0.5 for jump in jumps.values()), jumps


def test_alibi_tells_neighbours_apart_in_bfloat16() -> None:
    """Exact: distances are taken before positions are rounded to a type that does not hold 1001."""
    like, keys = torch.zeros(1, dtype=torch.bfloat16), torch.arange(997, 1002)[None]
    found = alibi((0.5, 0.25), keys[:, -1:], keys, like)
    assert found.dtype == like.dtype and found.shape == (1, 2, 1, 5)
    assert found[0, :, 0].tolist() == [[-2, -1.5, -1, -0.5, 0], [-1, -0.75, -0.5, -0.25, 0]]


def test_rotation_by_halves_is_transformers_own() -> None:
    """fp32 (transformers computes angles in fp32), 1e-6."""
    config = LlamaConfig(hidden_size=24, num_attention_heads=3, max_position_embeddings=64)
    module = LlamaRotaryEmbedding(config)
    q = randn(2, 3, 7, 8).float()
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [9, 9, 11, 3, 0, 60, 2]])
    cos, sin = module(q, positions)
    wanted, _ = apply_rotary_pos_emb(q, q, cos, sin)
    torch.testing.assert_close(rotate(q, positions, module.inv_freq, "half"), wanted, rtol=1e-6, atol=1e-6)


@QUICK
@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 9))
def test_rotation_by_pairs_is_complex_multiplication(pairs: int, rest: int, seed: int) -> None:
    """fp64, 1e-12; what is beyond the pairs stays."""
    x, inv_freq = randn(2, 3, 5, 2 * pairs + rest, seed=seed), randn(pairs, seed=seed + 1).abs()
    positions = torch.randint(0, 50, (2, 5), generator=torch.Generator().manual_seed(seed))
    turned = rotate(x, positions, inv_freq, "interleaved")
    numbers = torch.complex(x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2])
    angle = positions[:, None, :, None] * inv_freq
    wanted = torch.view_as_real(numbers * torch.polar(torch.ones_like(angle), angle)).flatten(-2)
    torch.testing.assert_close(turned[..., : 2 * pairs], wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(turned[..., 2 * pairs :], x[..., 2 * pairs :])


def test_softmax_of_a_row_without_keys_is_zero_in_value_and_gradient() -> None:
    """fp64, 1e-14."""
    scores = (50 * randn(2, 4, 4)).requires_grad_()
    allowed = causal_mask(4, scores.device).clone().expand(2, 4, 4).clone()
    allowed[1, 2] = False
    found = masked_softmax(scores, allowed)
    assert torch.equal(found[1, 2], torch.zeros(4, dtype=torch.float64))
    wanted = scores.masked_fill(~allowed, -math.inf).softmax(-1)
    kept = torch.ones(2, 4, dtype=torch.bool)
    kept[1, 2] = False
    torch.testing.assert_close(found[kept], wanted[kept], rtol=1e-14, atol=1e-14)
    (gradient,) = torch.autograd.grad(found.square().sum(), scores)
    assert bool(torch.isfinite(gradient).all()) and bool((gradient[1, 2] == 0).all())


def test_a_sink_is_one_more_logit_whose_probability_is_dropped() -> None:
    scores, sinks = 50 * randn(2, 3, 4, 4), 50 * randn(3, seed=1)
    allowed = causal_mask(4, scores.device)
    found = masked_softmax(scores, allowed, sinks)
    columns = sinks[:, None, None].expand(2, 3, 4, 1)
    wanted = torch.cat((scores.masked_fill(~allowed, -math.inf), columns), -1).softmax(-1)[..., :-1]
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)
    alone = masked_softmax(scores, torch.zeros(4, 4, dtype=torch.bool), sinks)
    assert torch.equal(alone, torch.zeros_like(alone))


def test_heads_split_and_merge() -> None:
    x = randn(2, 5, 12)
    assert torch.equal(split_heads(x, 3)[1, 2, 4], x[1, 4, 8:])
    assert torch.equal(merge_heads(split_heads(x, 3)), x)


def exact_jvp(kind: str, x: Tensor, g: Tensor) -> Tensor:
    return torch.func.jvp(lambda z: normalise(kind, z, 1e-12), (x,), (g,))[1]


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("sigma", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize("size", [1e-9, 1e-4, 1.0, 1e3])
def test_token_scheme_suits_every_gradient(kind: str, sigma: float, size: float) -> None:
    """fp32, step 1e-3: the relative error is about 5e-4 whatever the sizes of gradient and input; here below 2e-3."""
    x, g = sigma * randn(20, 64, seed=1), size * randn(20, 64, seed=2)
    wanted = exact_jvp(kind, x, g)
    x32, g32 = x.float(), g.float()
    f = FiniteDifference("token", 1e-3)
    found = f.derivative(lambda z: normalise(kind, z, 1e-12), x32, g32, norm_scale(kind, x32, 1e-12))
    assert float((found - wanted).norm() / wanted.norm()) < 2e-3


@pytest.mark.parametrize("size", [1e-9, 1e-4, 1.0, 1e3])
def test_token_scheme_on_activations(size: float) -> None:
    """fp32, step 1e-3, below 2e-3 relative."""
    x, g = randn(20, 64, seed=1), size * randn(20, 64, seed=2)
    wanted = torch.func.jvp(torch.nn.functional.gelu, (x,), (g,))[1]
    found = FiniteDifference("token", 1e-3).derivative(torch.nn.functional.gelu, x.float(), g.float())
    assert float((found - wanted).norm() / wanted.norm()) < 2e-3


def test_zero_gradients_give_zero_beside_others() -> None:
    x, g = randn(4, 8), randn(4, 8)
    g[2] = 0
    for scheme in ("token", "fixed"):
        found = FiniteDifference(scheme, 1e-3).derivative(torch.tanh, x, g)
        assert bool((found[2] == 0).all()) and bool(torch.isfinite(found).all()) and float(found[0].abs().min()) > 0


@pytest.mark.parametrize("scheme", ["token", "fixed"])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_error_is_of_first_order_in_the_step(scheme: str, kind: str) -> None:
    """fp64: the slope of log error against log eps is 1, to 0.05."""
    x, g = randn(20, 16, seed=1), randn(20, 16, seed=2)
    wanted, errors = exact_jvp(kind, x, g), []
    for eps in (1e-2, 1e-4):
        f = FiniteDifference(scheme, eps)
        errors.append(
            float((f.derivative(lambda z: normalise(kind, z, 1e-12), x, g, norm_scale(kind, x, 1e-12)) - wanted).norm())
        )
    assert abs(math.log10(errors[0] / errors[1]) / 2 - 1) < 0.05
