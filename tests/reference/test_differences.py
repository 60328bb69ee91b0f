"""How the step of finite differences is chosen (construction.md, section 6).

fp64, 1e-9 of the update, unless said otherwise.
"""

from __future__ import annotations

import pytest
import torch
from fused_cases import check_fused, family, token_ids

import tintc
from tintc.errors import OptionError
from tintc.ir.functions import FiniteDifference
from tintc.ir.inputs import resolve_inputs
from tintc.options import Options
from tintc.reference.simulated_gradients import simulated_gradients

IDS = token_ids(2, 9)


def test_small_gradients_in_fp32() -> None:
    """Gradients of 1e-5 and less, as averaging the loss over a book would make them: the constant step of the paper
    loses them in rounding, the token step does not. Errors relative to fp64 with the same steps."""
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = 1e-6 * torch.randn(4, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    errors = {}
    for scheme in ("fixed", "token"):
        f = FiniteDifference(scheme, 1e-3)
        right = f.derivative(torch.tanh, x, g)
        found = f.derivative(torch.tanh, x.float(), g.float())
        errors[scheme] = float((found - right).norm() / right.norm())
    assert errors["fixed"] > 0.5 and errors["token"] < 1e-2


def test_fixed_steps_in_exact_semantics() -> None:
    """`--difference fixed` without the rest of paper-code: another gradient than the token step's, but close."""
    gradients = []
    for scheme in ("fixed", "token"):
        sim = family("gpt2").compile(difference=scheme, inner_lr=0.02)
        if scheme == "fixed":  # the other is what all other tests take
            check_fused(sim, IDS)
        gradients.append(simulated_gradients(sim, resolve_inputs(IDS[:1])))
    fixed, token = gradients
    apart = sum(float((fixed[key] - token[key]).square().sum()) for key in token) ** 0.5
    size = sum(float(gradient.square().sum()) for gradient in token.values()) ** 0.5
    assert 1e-6 < apart / size < 2e-2


@pytest.mark.parametrize("scheme", ["free", "calibrated"])
def test_unknown_schemes_are_refused(scheme: str) -> None:
    with pytest.raises(OptionError, match=f"'{scheme}' is unknown; choose one of fixed, token"):
        Options(difference=scheme)


def test_paper_code_has_fixed_steps() -> None:
    with pytest.raises(OptionError, match="paper-code has differences of a fixed step; choose exact for token"):
        Options(semantics="paper-code", difference="token")


def test_a_text_that_nothing_is_calibrated_on_is_refused() -> None:
    with pytest.raises(OptionError, match=r"for softmax heads \(--linear-attention softmax\)"):
        tintc.compile(family("gpt2").source.model, calibration=IDS[0])
