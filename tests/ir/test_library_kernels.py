"""Kernels of libraries in the place of operators: the same results.

Where a library cannot run here, what it is documented to compute stands for it, in its layout.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from fused_cases import relative_to_update, token_ids
from kernel_cases import close
from programs import hybrid_like, mixture_like, simulator
from torch import Tensor

from tintc.ir.losses import LogitMap, loss_gradient
from tintc.ir.simulator.kernels import choice, fla
from tintc.ir.simulator.kernels.choice import using
from tintc.ir.simulator.kernels.grouped import grouped_product
from tintc.ir.simulator.ops import loss_gradient as loss_op


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_products(transposed: bool) -> None:
    """bf16, 1e-2 of the largest; an expert that nobody chose, and the last one empty too."""
    x = random(13, 16 if transposed else 24, dtype=torch.bfloat16)
    weight, keys = (
        random(5, 16, 24, dtype=torch.bfloat16, seed=1),
        torch.tensor([3, 0, 0, 3, 1, 0, 3, 3, 1, 0, 0, 1, 3]),
    )
    wanted = grouped_product(x.double(), weight.double(), keys, transposed)
    with torch.no_grad():
        for way in ("torch", "library"):
            with using(way):
                close(grouped_product(x, weight, keys, transposed), wanted, 1e-2)


def test_experts_by_grouped_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole pass where numbers cannot be looked at, as on a GPU; bf16: 5e-2 of the largest logit."""
    monkeypatch.setattr(choice, "READABLE", set())
    sim = simulator(*mixture_like(width=24, d_ff=16, chosen=2, normalise="sum"), inner_lr=0.02, n_steps=1).to(
        torch.bfloat16
    )
    sim.executor, ids = "fused", token_ids(2, 9, 11)
    asked: list[str] = []
    plain = torch.nn.functional.grouped_mm
    monkeypatch.setattr(torch.nn.functional, "grouped_mm", lambda *a, **k: (asked.append("it"), plain(*a, **k))[1])
    with torch.no_grad():
        ours = sim(ids, return_before=True)
        ran = len(asked)
        with using("torch"):
            plainly = sim(ids, return_before=True)
    assert len(asked) == ran > 0
    close(ours.logits, plainly.logits.double(), 5e-2)


@pytest.mark.skipif(not hasattr(torch.nn.functional, "linear_cross_entropy"), reason="torch has had it since 2.13")
@pytest.mark.parametrize(("scale", "biased"), [(1.0, False), (0.5, True)])
def test_loss_gradient(scale: float, biased: bool) -> None:
    """fp32, 1e-5 of the largest."""
    x, head, ids = random(7, 12), random(31, 12, seed=1), torch.arange(7) * 4
    bias = random(31, seed=2) if biased else None
    wide = bias.double() if bias is not None else None
    wanted = loss_gradient("ce", x.double(), head.double(), wide, ids, LogitMap(scale))
    with torch.no_grad():
        for way in (loss_op.library_gradient, loss_op.blockwise_gradient):
            found = way("ce", x, head, bias, ids, LogitMap(scale))
            close(found, wanted, 1e-5)
            assert not found.requires_grad


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float) -> tuple[Tensor, None]:
    """flash-linear-attention's gated delta rule and KDA, ``[B, T, H, d]``, token by token."""
    return _recurrent(q, k, v, g, beta, scale), None


def gated(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float) -> tuple[Tensor, None]:
    """Its gated linear attention, simple or by coordinate."""
    return _recurrent(q, k, v, g, None, scale), None


def _recurrent(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor | None, scale: float) -> Tensor:
    state = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    decays = g if g.dim() == 4 else g[..., None]
    results = []
    for t in range(v.shape[1]):
        state = state * decays[:, t, :, :, None].to(v.dtype).exp()
        u = v[:, t]
        if beta is not None:
            u = beta[:, t, :, None] * (u - torch.einsum("bhkv,bhk->bhv", state, k[:, t]))
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], u)
        results.append(scale * torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(results, 1)


@pytest.mark.parametrize(
    ("delta", "by_coordinate", "options"),
    [
        (True, False, {"key_heads": 2, "unit_eps": 1e-6}),
        (True, True, {"key_heads": 1}),
        (False, False, {"key_heads": 1, "skip": True}),
        (False, True, {"key_heads": 1, "skip": True}),
    ],
)
def test_recurrences(
    delta: bool, by_coordinate: bool, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and transposed, with padding; decays are handed on in fp32: 1e-5 of the update."""
    sim = simulator(*hybrid_like(delta=delta, by_coordinate=by_coordinate, **options), inner_lr=0.02)
    sim.executor, ids, mask = "fused", token_ids(2, 9, 11), torch.ones(2, 9)
    mask[0, :2] = 0
    module, name = fla.FUNCTIONS[delta, by_coordinate]
    stand_in = ModuleType(module)
    setattr(stand_in, name, delta_rule if delta else gated)
    monkeypatch.setitem(sys.modules, module, stand_in)
    asked: list[bool] = []
    with torch.no_grad():
        wanted = sim(ids, attention_mask=mask, return_before=True)
        monkeypatch.setattr(fla, "takes", lambda options, v: asked.append(True) or True)
        found = sim(ids, attention_mask=mask, return_before=True)
    assert len(asked) > 1
    assert relative_to_update(found.logits, wanted.logits, wanted.logits_before) < 1e-5
    assert relative_to_update(found.logits_before, wanted.logits_before, wanted.logits) < 1e-5
