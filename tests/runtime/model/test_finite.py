"""NaN: looked for in pieces, told of once after an update that blows up, refused in states and in choosing tokens."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from continuations import compiled
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import gpt2, token_ids

import tintc
from tintc.errors import ArtefactError, InputError
from tintc.ir.finite import is_finite
from tintc.runtime.model.causal_lm import TintForCausalLM

IDS = token_ids(2, 10)


@pytest.fixture(scope="module")
def one_layer() -> TintForCausalLM:
    return tintc.compile(gpt2(n_layers=1, n_heads=3, head_dim=6, d_ff=31), inner_lr=0.02)


@pytest.fixture(params=["fused", "literal"])
def sim(one_layer: TintForCausalLM, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TintForCausalLM:
    """A simulator that has said nothing yet."""
    monkeypatch.setattr(one_layer, "executor", request.param)
    monkeypatch.setattr(one_layer, "_warnings_given", set())
    return one_layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_wherever_they_are(dtype: torch.dtype, bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of several pieces; sums that overflow are not taken for infinite numbers."""
    monkeypatch.setattr("tintc.ir.finite.PIECE", 100)
    tensor = torch.full((103,), torch.finfo(dtype).max / 2, dtype=dtype).reshape(1, -1)
    assert is_finite(tensor) and is_finite(torch.zeros(0, dtype=dtype))
    for place in (0, 100, 102):
        broken = tensor.clone()
        broken[0, place] = bad
        assert not is_finite(broken)
    opposite = torch.tensor([math.inf, -math.inf], dtype=dtype)
    assert not is_finite(opposite)


def test_an_update_that_blows_up_is_told_of_once(sim: TintForCausalLM, caplog: pytest.LogCaptureFixture) -> None:
    with torch.no_grad():
        sim(IDS, inner_lr=0.01)
        assert caplog.text == ""
        for _ in range(2):
            assert not sim(IDS, inner_lr=1e38).logits[:, -1].isfinite().all()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "choose a smaller inner_lr" in record.getMessage()


def test_adapting_tells_too(sim: TintForCausalLM, caplog: pytest.LogCaptureFixture) -> None:
    sim.adapt(IDS, inner_lr=0.01)
    assert caplog.text == ""
    for _ in range(2):
        sim.adapt(IDS, inner_lr=3e38)
    assert len(caplog.records) == 1 and "choose a smaller inner_lr" in caplog.text


@pytest.mark.parametrize("how", [{"do_sample": True}, {"do_sample": False}, {"num_beams": 2}])
def test_no_token_is_chosen_from_nan(sim: TintForCausalLM, how: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the learning rate is too large for this prompt"):
        sim.generate(IDS, inner_lr=1e38, max_new_tokens=2, **how)
    assert sim.generate(IDS, inner_lr=0.01, max_new_tokens=2, **how).shape == (2, 12)


@pytest.mark.parametrize("examples", [1, 2])
def test_a_state_with_nan_is_refused(examples: int, tmp_path: Path) -> None:
    sim, file = compiled("gpt2", n_update_layers=1), tmp_path / "a.state"
    sim.adapt(IDS[:examples]).save(file)
    tensors = load_file(file)
    assert tintc.AdaptedState.load(file, sim).examples == examples
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    for name in tensors:
        broken = {key: one.clone() for key, one in tensors.items()}
        broken[name].view(-1)[-1] = math.nan
        save_file(broken, file, metadata)
        with pytest.raises(ArtefactError, match=f"NaN or infinite values in {name}; adapt again"):
            tintc.AdaptedState.load(file, sim)
