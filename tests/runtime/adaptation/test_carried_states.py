"""Recurrences and convolutions while decoding: the state of a cache gives what the whole text gives, run again.

fp64, 1e-9 of the largest logit. The train mask is the prompt's throughout.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from continuations import PADDED, PROMPT, WHOLE, one_by_one, whole, worst
from programs import hybrid_like, simulator
from tiny_models import token_ids

from tintc.errors import OptionError
from tintc.runtime.adaptation.cache import StateLayer
from tintc.runtime.model.causal_lm import TintForCausalLM

KINDS: dict[str, dict[str, Any]] = {
    "gated delta rule": {"key_heads": 2, "delta": True, "unit_eps": 1e-6, "scale": 3**-0.5},
    "delta rule by coordinate": {"key_heads": 4, "delta": True, "by_coordinate": True},
    "product of delta rules": {"key_heads": 2, "delta": True, "unit_eps": 1e-6, "writes": 3},
    "state space": {"key_heads": 2, "skip": True, "bias": True},
    "state space by coordinate": {"key_heads": 1, "by_coordinate": True, "skip": True, "convolved": False},
}
IDS = token_ids(2, WHOLE, 11)
GREEDY: dict[str, Any] = {"max_new_tokens": 5, "eos_token_id": 2, "pad_token_id": 0, "do_sample": False}


@cache
def hybrid(kind: str, n_steps: int = 1) -> TintForCausalLM:
    sim = simulator(*hybrid_like(**KINDS[kind]), inner_lr=0.02, n_steps=n_steps)
    sim.trust()
    sim.executor = "fused"
    return sim


@pytest.mark.parametrize(("kind", "padded"), [(next(iter(KINDS)), False), *((kind, True) for kind in KINDS)])
def test_token_by_token(kind: str, padded: bool) -> None:
    """Two steps; the prompt, two tokens together, then one at a time; with padding on the left of one text and without.

    Literal execution, which runs the text again, says the same.
    """
    sim = hybrid(kind, 2)
    mask = PADDED if padded else None
    found = one_by_one(sim, IDS, mask)
    assert worst(found, whole(sim, IDS, mask)) < 1e-9
    try:
        sim.executor = "literal"
        assert worst(found, whole(sim, IDS, mask)) < 1e-9
    finally:
        sim.executor = "fused"


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3, "temperature": 1.5},
    ],
)
@pytest.mark.parametrize("mask", [None, PADDED])
def test_the_cache_changes_nothing(way: dict[str, Any], mask: torch.Tensor | None) -> None:
    """transformers' own ways of choosing tokens, with and without a cache."""
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        given = GREEDY | {"attention_mask": mask, "use_cache": use_cache} | way
        found.append(hybrid("gated delta rule").generate(IDS[:, :PROMPT], **given))
    assert torch.equal(*found)
    assert found[0].shape[1] > PROMPT


def test_rows_of_a_cache() -> None:
    """Rows can be repeated, exchanged and chosen, and each goes on with its own weights; a copy goes on by itself."""
    sim = hybrid("gated delta rule")
    rest = IDS[:, PROMPT:]
    with torch.no_grad():
        past = sim(IDS[:, :PROMPT], use_cache=True).past_key_values
        kept = copy.deepcopy(past)
        wanted = sim(rest, past_key_values=past).logits
        other = copy.deepcopy(kept)
        other.batch_repeat_interleave(2)
        twice = sim(rest.repeat_interleave(2, 0), past_key_values=other).logits
        other = copy.deepcopy(kept)
        other.batch_select_indices(torch.tensor([1]))
        chosen = sim(rest[1:], past_key_values=other).logits
    assert worst(twice, wanted.repeat_interleave(2, 0)) < 1e-9
    assert worst(chosen, wanted[1:]) < 1e-9


def test_a_state_does_not_grow() -> None:
    """Of the recurrence ``[B, n_heads, key_dim, value_dim]``, of a convolution as many inputs as it reaches back."""
    sim = hybrid("gated delta rule")
    sizes = []
    with torch.no_grad():
        past = sim(IDS[:, :2], use_cache=True).past_key_values
        for at in (2, 6, 12):
            sim(IDS[:, at : at + 1], past_key_values=past)
            states = [layer.state for layer in past.layers if isinstance(layer, StateLayer)]
            sizes.append([tuple(state.shape) for state in states if state is not None])
    assert sizes[0] == sizes[1] == sizes[2]
    assert sorted(sizes[0]) == [(2, 3, 12), (2, 3, 12), (2, 4, 3, 3)]


def test_there_is_no_way_back() -> None:
    """Crop is refused before anything is cropped, and drafts, which would need it, before anything is run."""
    sim = hybrid("state space")
    with torch.no_grad():
        past = sim(IDS[:, :PROMPT], use_cache=True).past_key_values
        with pytest.raises(OptionError, match="cannot be cropped back to an earlier token; copy the cache"):
            past.crop(-1)
        past.crop(0)
        found = sim(IDS[:, PROMPT:], past_key_values=past).logits
    assert worst(found, whole(sim, IDS)[:, 1:]) < 1e-9
    with pytest.raises(OptionError, match="leave out prompt_lookup_num_tokens"):
        sim.generate(IDS[:, :PROMPT], prompt_lookup_num_tokens=2, **GREEDY)
    past.reset()
    assert all(layer.state is None for layer in past.layers if isinstance(layer, StateLayer))


def test_autograd_through_a_state() -> None:
    """The gradient of later tokens' logits with respect to the stored rates, by the cache and by the whole text."""
    sim = hybrid("gated delta rule")
    rates = list(sim.rates.parameters())
    past = sim(IDS[:, :PROMPT], use_cache=True).past_key_values
    found = torch.autograd.grad(sim(IDS[:, PROMPT:], past_key_values=past).logits.square().sum(), rates)
    train = torch.zeros_like(IDS)
    train[:, : PROMPT // 2] = 1
    wanted = torch.autograd.grad(sim(IDS, train_mask=train).logits[:, PROMPT:].square().sum(), rates)
    assert worst(torch.cat(found), torch.cat(wanted)) < 1e-9
