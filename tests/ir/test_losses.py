"""Losses and their gradients at the head's input, and heads whose logits are scaled and capped. fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tintc.ir.losses import PLAIN, LogitMap, loss_gradient
from tintc.ir.simulator.ops import loss_gradient as module
from tintc.option_facts import LOSSES

MAPS = [PLAIN, LogitMap(scale=0.3), LogitMap(softcap=2.0), LogitMap(scale=-1.7, softcap=0.8)]


def summed_loss(
    kind: str, x: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, logit_map: LogitMap
) -> Tensor:
    """The losses of Remark H.2, written out."""
    if kind == "mse":
        return (x - head[targets]).square().sum() / 2
    z = logit_map.scale * (x @ head.T if bias is None else x @ head.T + bias)
    z = logit_map.softcap * torch.tanh(z / logit_map.softcap) if logit_map.softcap else z
    picked = z.gather(-1, targets[..., None]).sum()
    return z.logsumexp(-1).sum() - picked if kind == "ce" else z.square().sum() / 2 - picked


@pytest.mark.parametrize("logit_map", MAPS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_are_autograd_s(
    kind: str, with_bias: bool, logit_map: LogitMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, and by blocks of four of the vocabulary: 1e-12."""
    monkeypatch.setattr(module, "WORDS", 4)
    generator = torch.Generator().manual_seed(1)
    x, head, bias = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((5, 6), (9, 6), (9,)))
    given_bias = bias if with_bias else None
    targets = torch.tensor([0, 3, 8, 8, 1])
    x.requires_grad_()
    (wanted,) = torch.autograd.grad(summed_loss(kind, x, head, given_bias, targets, logit_map), x)
    for gradient in (loss_gradient, module.blockwise_gradient):
        found = gradient(kind, x.detach(), head, given_bias, targets, logit_map)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.floats(-3, 3), st.sampled_from([0.0, 0.5, 30.0]), st.integers(0, 1000))
def test_slopes_are_the_derivative(scale: float, softcap: float, seed: int) -> None:
    """The slope is read off the logits; written over or not, logits are the same."""
    scores = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    logit_map = LogitMap(scale, softcap)
    logits = logit_map(scores)
    (wanted,) = torch.autograd.grad(logits.sum(), scores)
    slope = torch.as_tensor(logit_map.slope(logits.detach()), dtype=torch.float64).expand(7)
    torch.testing.assert_close(slope, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(logit_map(scores.detach().clone(), overwrite=True), logits.detach())
    if softcap:
        assert float(logits.detach().abs().max()) <= softcap
    else:
        torch.testing.assert_close(logits, F.linear(scores[:, None], torch.tensor([[scale]]).double())[:, 0])
