"""Recurrences and convolutions: both interpreters, literal and fused execution agree; tokens one by one too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fused_cases import check_every_way
from programs import hybrid_like, simulator
from tiny_models import token_ids

from tintc.errors import InputError
from tintc.ir.auxiliary.interpreter import Descent

KINDS: dict[str, dict[str, Any]] = {
    "gated delta rule": {"key_heads": 2, "delta": True, "unit_eps": 1e-6, "scale": 3**-0.5},
    "delta rule by coordinate": {"key_heads": 4, "delta": True, "by_coordinate": True, "unit_eps": 1e-6},
    "product of delta rules": {"key_heads": 2, "delta": True, "unit_eps": 1e-6, "writes": 3},
    "state space": {"key_heads": 2, "skip": True},
    "state space by coordinate": {"key_heads": 1, "by_coordinate": True, "skip": True, "convolved": False},
}
IDS = token_ids(2, 21, 11)


@pytest.mark.parametrize("kind", KINDS)
def test_all_ways_agree(kind: str) -> None:
    """Two steps, padding on either side; fp64, 1e-9 of the update. 21 tokens: more than a chunk by coordinate."""
    program, tensors = hybrid_like(**KINDS[kind])
    sim = simulator(program, tensors, inner_lr=0.02, n_steps=2)
    mask = torch.ones(2, 21, dtype=torch.long)
    mask[0, :3] = 0
    mask[1, 18:] = 0
    check_every_way(sim, program, tensors, IDS, Descent(0.02, n_steps=2), attention_mask=mask)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_one_by_one(kind: str) -> None:
    """Logits of the next tokens from the cache, under padding, are those of the whole text (fp64, 1e-9)."""
    program, tensors = hybrid_like(**KINDS[kind], bias=True)
    sim = simulator(program, tensors, inner_lr=0.02)
    sim.executor = "fused"
    mask = torch.ones(2, 21, dtype=torch.long)
    mask[0, :3] = 0
    with torch.no_grad():
        state = sim.adapt(IDS[:, :15], attention_mask=mask[:, :15])
        right = sim(IDS, state=state, attention_mask=mask).logits[:, 15:]
        cache = sim(IDS[:, :15], attention_mask=mask[:, :15], use_cache=True).past_key_values
        found = []
        for at in range(15, 21):
            out = sim(IDS[:, at : at + 1], attention_mask=mask[:, : at + 1], past_key_values=cache, use_cache=True)
            found.append(out.logits[:, -1])
    torch.testing.assert_close(torch.stack(found, 1), right, rtol=0, atol=1e-9)


def test_gradients_of_both_executors_agree() -> None:
    """Of the logits' square with respect to all weights of the mixer, through the step (fp64, 1e-8)."""
    program, tensors = hybrid_like(**KINDS["gated delta rule"])
    sim = simulator(program, tensors, inner_lr=0.02)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for executor in ("literal", "fused"):
        sim.executor = executor
        sim.zero_grad()
        sim(IDS).logits.square().mean().backward()
        named = ((name, parameter.grad) for name, parameter in sim.named_parameters() if ".mixer." in name)
        found[executor] = {name: grad.clone() for name, grad in named if grad is not None}
    assert len(found["fused"]) > 8
    for name, grad in found["literal"].items():
        assert float((found["fused"][name] - grad).norm()) < 1e-8 * float(grad.norm()), name


def test_masks_other_than_padding_are_refused() -> None:
    program, tensors = hybrid_like(**KINDS["state space"])
    sim = simulator(program, tensors)
    mask = torch.ones(2, 21, 21, dtype=torch.long)
    mask[0, 9, 4] = 0
    with pytest.raises(InputError, match="marks padding alone"):
        sim(IDS, attention_mask=mask)
