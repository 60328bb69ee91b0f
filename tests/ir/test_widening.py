"""The product that oneDNN takes is the one PyTorch's linear layer is: the same numbers, and when it is taken."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tintc.ir.simulator.interface import fused_kernels
from tintc.ir.simulator.interface.fused_kernels import FEW, FEWEST, widening


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 33), din=st.integers(1, 70), more=st.integers(1, 90), bias=st.booleans(), cut=st.booleans())
def test_it_is_the_linear_layer(rows: int, din: int, more: int, bias: bool, cut: bool) -> None:
    """fp32, 1e-6 of the product's size; `cut`: the first positions of a longer text, which do not lie in one piece."""
    torch.manual_seed(rows + 100 * din)
    x, weight = torch.randn(2, rows + 3 * cut, din)[:, :rows], torch.randn(din + more, din)
    added = torch.randn(din + more) if bias else None
    with torch.no_grad():
        found = widening(x, weight, added)
    wanted = F.linear(x.double(), weight.double(), None if added is None else added.double())
    assert found.shape == wanted.shape
    assert (found - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.skipif(not fused_kernels.ONEDNN, reason="this build of PyTorch has no oneDNN")
@pytest.mark.parametrize(
    ("rows", "dout", "dtype", "recorded", "taken"),
    [
        (FEW, 40, torch.float32, False, True),
        (FEW + 1, 40, torch.float32, False, False),
        (FEWEST, 40, torch.float32, False, True),
        (FEWEST - 1, 40, torch.float32, False, False),
        (FEW, 20, torch.float32, False, False),
        (FEW, 40, torch.float64, False, False),
        (FEW, 40, torch.float32, True, False),
    ],
)
def test_when_it_is_taken(
    monkeypatch: pytest.MonkeyPatch, rows: int, dout: int, dtype: torch.dtype, recorded: bool, taken: bool
) -> None:
    """Otherwise PyTorch's own layer runs, which is differentiable."""
    asked = []
    monkeypatch.setattr(fused_kernels.F, "linear", lambda *args: asked.append(args))
    with torch.set_grad_enabled(recorded):
        widening(torch.randn(rows, 20, dtype=dtype), torch.randn(dout, 20, dtype=dtype))
    assert bool(asked) != taken
