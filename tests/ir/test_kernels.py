"""Our Triton kernels, on a GPU or else in Triton's interpreter: the same as the definitions in fp64.

Tolerances are relative to the largest number: fp32 2e-5 (differences 2e-3: their own cancellation), bf16 2e-2.
"""

from __future__ import annotations

import pytest
import torch
from kernel_cases import ATTENTIONS, attention_case, close, derivative_of, values_by_definition
from torch import Tensor

from tintc.ir.functions import ACTIVATIONS, norm_scale, normalise
from tintc.ir.simulator.kernels.rows import FUNCTIONS, Difference

pytest.importorskip("triton", reason="Triton is not installed (the extra cuda)")
from tintc.ir.simulator.kernels import triton_attention as attention
from tintc.ir.simulator.kernels import triton_difference as difference
from tintc.ir.simulator.kernels import triton_norm as norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCHEMES = {"fixed": (False, False), "token": (True, False), "central": (True, True)}
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
    per_token, central = SCHEMES[scheme]
    step = Difference(0.01, per_token, central, 1e-18)
    dy, x = random(2, 7, 33, dtype=dtype)[:, :5], random(2, 9, 33, dtype=dtype, seed=1)[:, :5]
    dy[0, 2] = 0
    found = difference.activation_backward(fn, step, dy, x)
    close(found, derivative_of(ACTIVATIONS[fn], step, dy, x), DTYPES[dtype])
    assert not per_token or not bool(found[0, 2].any())


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
def test_gate_backward(dtype: torch.dtype, tolerance: float) -> None:
    step = Difference(0.01, True, False, 1e-18)
    dy, g, u = (random(2, 5, 40, dtype=dtype, seed=seed) for seed in range(3))
    dg, du = difference.gate_backward("silu", step, dy, g, u)
    wide = dy.double() * g.double()
    close(dg, dy.double() * ACTIVATIONS["silu"](u.double()), tolerance)
    close(du, derivative_of(ACTIVATIONS["silu"], step, wide, u), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("kind", "groups", "gains"), [("layer", 1, 1), ("rms", 1, 2), ("rms", 3, 0), ("layer", 1, 0)])
def test_norm_backward(kind: str, groups: int, gains: int, scheme: str, dtype: torch.dtype, tolerance: float) -> None:
    """gains: none, one for all, or one of each example."""
    per_token, central = SCHEMES[scheme]
    step = Difference(0.02, per_token, central, 1e-18)
    dy, x = random(2, 7, 36, dtype=dtype)[:, :5], random(2, 5, 36, dtype=dtype, seed=1) * 2 + 0.3
    gain = None
    g = dy.double()
    if gains:
        gain = random(*([2] * (gains - 1)), 36, seed=2) + 1
        g = g * (gain if gains == 1 else gain[:, None]).double()
    split = [value.double().unflatten(-1, (groups, -1)) for value in (g, x)]
    scale = norm_scale(kind, split[1], 1e-5) if per_token else 1.0
    wanted = derivative_of(lambda z: normalise(kind, z, 1e-5), step, *split, scale)
    close(norm.norm_backward(kind, groups, 1e-5, step, dy, x, gain), wanted.flatten(-2), tolerance)
