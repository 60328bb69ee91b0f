"""Our Triton kernels, on a GPU or else in Triton's interpreter: the same as the definitions in fp64.

Tolerances are relative to the largest number: fp32 2e-5 (differences 2e-3: their own cancellation), bf16 2e-2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_programs import decoder
from fused_cases import family, relative_to_update, token_ids
from kernel_cases import ATTENTIONS, attention_case, close, values_by_definition
from programs import simulator
from torch import Tensor

from tintc.ir.functions import ACTIVATIONS, FiniteDifference, norm_scale, normalise
from tintc.ir.simulator.kernels.choice import using
from tintc.ir.simulator.kernels.rows import FUNCTIONS

pytest.importorskip("triton", reason="Triton is not installed (the extra cuda)")
from tintc.ir.simulator.kernels import triton_attention as attention
from tintc.ir.simulator.kernels import triton_difference as difference
from tintc.ir.simulator.kernels import triton_norm as norm
from tintc.ir.simulator.kernels import triton_products as products

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCHEMES = ("fixed", "token", "central")
DTYPES = {torch.float32: 2e-3, torch.bfloat16: 2e-2}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
def test_values_gradient(name: str, dtype: torch.dtype, tolerance: float) -> None:
    q, k, dy, options = attention_case(name, dtype, DEVICE)
    close(attention.values_gradient(q, k, dy, options), values_by_definition(q, k, dy, options), tolerance)


@pytest.mark.parametrize(
    ("fn", "scheme", "dtype"),
    [(fn, "token", torch.float32) for fn in FUNCTIONS] + [("gelu", scheme, torch.bfloat16) for scheme in SCHEMES],
)
def test_activation_backward(fn: str, scheme: str, dtype: torch.dtype) -> None:
    """Cut texts, whose rows do not follow each other, and a gradient that is zero."""
    step = FiniteDifference(scheme, 0.01)
    dy, x = random(2, 7, 33, dtype=dtype)[:, :5], random(2, 9, 33, dtype=dtype, seed=1)[:, :5]
    dy[0, 2] = 0
    found = difference.activation_backward(fn, step, dy, x)
    close(found, step.derivative(ACTIVATIONS[fn], x.double(), dy.double()), DTYPES[dtype])
    assert not step.per_token or not bool(found[0, 2].any())


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
def test_gate_backward(dtype: torch.dtype, tolerance: float) -> None:
    step = FiniteDifference("token", 0.01)
    dy, g, u = (random(2, 5, 40, dtype=dtype, seed=seed) for seed in range(3))
    dg, du = difference.gate_backward("silu", step, dy, g, u)
    wide = dy.double() * g.double()
    close(dg, dy.double() * ACTIVATIONS["silu"](u.double()), tolerance)
    close(du, step.derivative(ACTIVATIONS["silu"], u.double(), wide), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("kind", "groups", "gains"), [("layer", 1, 1), ("rms", 1, 2), ("rms", 3, 0), ("layer", 1, 0)])
def test_norm_backward(kind: str, groups: int, gains: int, scheme: str, dtype: torch.dtype, tolerance: float) -> None:
    """gains: none, one for all, or one of each example."""
    step = FiniteDifference(scheme, 0.02)
    dy, x = random(2, 7, 36, dtype=dtype)[:, :5], random(2, 5, 36, dtype=dtype, seed=1) * 2 + 0.3
    gain = None
    g = dy.double()
    if gains:
        gain = random(gains, 36, seed=2) + 1
        g = g * gain[:, None].double()
    split = [value.double().unflatten(-1, (groups, -1)) for value in (g, x)]
    scale = norm_scale(kind, split[1], 1e-5) if step.per_token else 1.0
    wanted = step.derivative(lambda z: normalise(kind, z, 1e-5), split[1], split[0], scale)
    close(norm.norm_backward(kind, groups, 1e-5, step, dy, x, gain), wanted.flatten(-2), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(
    ("n", "k", "t", "out", "own", "biases"), [(70, 37, 5, 65, 0, 1), (3, 16, 41, 9, 2, 2), (5, 33, 40, 70, 2, 0)]
)
def test_two_products(
    n: int, k: int, t: int, out: int, own: int, biases: int, dtype: torch.dtype, tolerance: float
) -> None:
    """own: weights of each example; biases: none, one for all, or one of each example. Operands are views."""
    x, s, b = (
        random(2, k, n, dtype=dtype).transpose(1, 2),
        random(2, n, t, dtype=dtype, seed=1),
        random(2, t, 80, seed=2),
    )
    b = b.to(dtype)[..., :out]
    weight = random(*([2] * bool(own)), out, k, dtype=dtype, seed=3)
    bias = random(*([2] * (biases == 2)), out, dtype=dtype, seed=4) if biases else None
    found = products.two_products(x, weight.transpose(-1, -2), bias, s, b, 2, -0.3)
    wanted = x.double() @ weight.double().transpose(-1, -2) - 0.3 * (s.double() + 2) @ b.double()
    if bias is not None:
        wanted = wanted + (bias.double() if biases == 1 else bias[:, None].double())
    close(found, wanted, tolerance)


def test_launches_are_where_the_tensors_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current GPU, which need not be theirs."""
    asked: list[Tensor] = []
    plain = torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: (asked.append(x), plain(x))[1])
    step, x = FiniteDifference("token", 0.01), random(1, 3, 8)
    difference.activation_backward("silu", step, x, x)
    difference.gate_backward("silu", step, x, x, x)
    norm.norm_backward("rms", 1, 1e-5, step, x, x, None)
    products.two_products(x, random(8, 5), None, random(1, 3, 2), random(1, 2, 5))
    q, k, dy, options = attention_case("plain", torch.float32, DEVICE)
    attention.values_gradient(q, k, dy, options)
    assert len(asked) == 5 and all(one.device == x.device for one in asked)


@pytest.mark.parametrize("name", ["gpt2", "llama", "all of attention"])
def test_simulators(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels stand in for operators wherever a fused pass has them, fp32: 1e-3 of the update."""
    if name == "all of attention":
        sim = simulator(*decoder(window=3, soft_cap=2.0, slopes=(0.5, 0.25, 0.125), sunk=True), inner_lr=0.02)
    else:
        sim = family(name).compile(inner_lr=0.02)
    sim.to(DEVICE, torch.float32)
    sim.executor, ids, mask = "fused", token_ids(2, 8, 11).to(DEVICE), torch.ones(2, 8, device=DEVICE)
    mask[0, :2] = 0
    ran: set[str] = set()
    sim.update = "lazy"
    replaced = ((attention, "values_gradient"), (norm, "norm_backward"), (products, "two_products"))
    for module, of in replaced:
        monkeypatch.setattr(module, of, _noting(ran, getattr(module, of)))
    for of in ("activation_backward", "gate_backward"):
        monkeypatch.setattr(difference, of, _noting(ran, getattr(difference, of)))
    found = []
    for way in ("torch", "triton"):
        with torch.no_grad(), using(way):
            found.append(sim(ids, attention_mask=mask, return_before=True))
        assert bool(ran) == (way == "triton")
    plain, ours = found
    assert relative_to_update(ours.logits, plain.logits, plain.logits_before) < 1e-3
    assert ran >= {"values_gradient", "norm_backward", "two_products"}
    assert ran & {"activation_backward", "gate_backward"}


def _noting(ran: set[str], kernel: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*args: Any) -> Any:
        ran.add(kernel.__name__)
        return kernel(*args)

    return noted
