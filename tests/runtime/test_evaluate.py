"""Blocks, train tokens and perplexities of `evaluate_blocks`; fp64, tolerance 1e-12."""

from __future__ import annotations

import math

import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st

import tintc
from tintc.errors import InputError, OptionError
from tintc.evaluation.perplexity import Blocks, cut_blocks, evaluate_blocks, held_out_loss, perplexity


@given(length=st.integers(4, 200), size=st.integers(4, 50), fraction=st.floats(0.5, 0.99))
def test_blocks_are_the_text_without_its_tail(length: int, size: int, fraction: float) -> None:
    ids = torch.arange(length)
    if size > length:
        with pytest.raises(InputError):
            cut_blocks(ids, 50, size, None, fraction)
        return
    blocks = cut_blocks(ids, 50, size, None, fraction)
    assert blocks.ids.flatten().tolist() == list(range(length // size * size))
    assert 2 <= blocks.train_tokens == math.floor(fraction * size) < size
    assert blocks.train_mask.sum() == blocks.train_tokens


@given(train=st.integers(2, 40), steps=st.integers(1, 9))
def test_steps_share_the_train_tokens(train: int, steps: int) -> None:
    blocks = Blocks(torch.zeros(1, 50), train)
    if train < 2 * steps:
        with pytest.raises(OptionError, match="each needs two"):
            blocks.step_masks(steps)
        return
    masks = blocks.step_masks(steps)
    assert torch.equal(masks.sum(0), blocks.train_mask) and masks.shape == (steps, 1, 50)
    assert int(masks.sum(-1).max() - masks.sum(-1).min()) <= 1


def test_every_step_may_train_on_a_part_of_its_own() -> None:
    sim, ids = tintc.compile(tiny_models.gpt2().double(), n_steps=2, inner_lr=0.05), tiny_models.token_ids(1, 16)
    masks = torch.zeros(2, 1, 16)
    masks[0, 0, :4], masks[1, 0, 4:8] = 1, 1
    found = evaluate_blocks(sim, ids[0], split_steps=True)
    with torch.no_grad():
        wanted = held_out_loss(sim(ids, train_mask=masks).logits, ids, 8) / 8
    assert found.perplexity_after == pytest.approx(math.exp(wanted), rel=1e-12)
    assert found.perplexity_after != evaluate_blocks(sim, ids[0]).perplexity_after


def test_default_block_is_the_text_or_the_longest() -> None:
    assert cut_blocks(torch.arange(30), 50, None, None, 0.5).ids.shape == (1, 30)
    assert cut_blocks(torch.arange(120), 50, None, None, 0.5).ids.shape == (2, 50)
    assert cut_blocks(torch.arange(120), 50, 10, 3, 0.5).ids.shape == (3, 10)


def test_held_out_loss_scores_test_targets_only() -> None:
    """Uniform logits, but sure and wrong where a train token is the target: those must not count."""
    logits, ids = torch.zeros(1, 8, 5), torch.zeros(1, 8, dtype=torch.long)
    logits[:, :3, 1] = 100
    assert held_out_loss(logits, ids, 4) == pytest.approx(4 * math.log(5), rel=1e-6)


def test_before_is_the_model_itself() -> None:
    model = tiny_models.llama().double()
    sim, ids = tintc.compile(model, inner_lr=0.05), tiny_models.token_ids(1, 40)[0]
    seen: list[tuple[int, int]] = []
    found = evaluate_blocks(sim, ids, 16, train_fraction=0.4, on_block=lambda done, total: seen.append((done, total)))
    with torch.no_grad():
        logits = model(ids[:32].reshape(2, 16)).logits
    wanted = torch.nn.functional.cross_entropy(logits[:, 5:-1].flatten(0, 1), ids[:32].reshape(2, 16)[:, 6:].flatten())
    assert found.perplexity_before == pytest.approx(math.exp(wanted), rel=1e-5), "transformers' norms are fp32"
    assert (found.blocks, found.block_size, found.train_tokens, found.tokens_scored) == (2, 16, 6, 20)
    assert seen == [(1, 2), (2, 2)]


def test_a_rate_of_zero_changes_nothing() -> None:
    sim = tintc.compile(tiny_models.gpt2().double())
    found = evaluate_blocks(sim, tiny_models.token_ids(1, 12)[0], inner_lr=0.0)
    assert found.perplexity_after == pytest.approx(found.perplexity_before, rel=1e-12)


def test_perplexity_is_finite_or_an_error() -> None:
    assert perplexity(2 * math.log(7), 2, "") == pytest.approx(7)
    for loss in (math.nan, math.inf, 1e4):
        with pytest.raises(InputError, match="too large"):
            perplexity(loss, 1, "the learning rate is too large")


@pytest.mark.parametrize("ids", [torch.zeros(0, dtype=torch.long), torch.arange(3), torch.zeros(1, 8)])
def test_texts_that_are_too_short(ids: torch.Tensor) -> None:
    with pytest.raises(InputError):
        cut_blocks(ids, 50, None, None, 0.5)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, math.nan, 0.2])
def test_train_fractions_out_of_range(fraction: float) -> None:
    with pytest.raises(OptionError):
        cut_blocks(torch.arange(8), 50, None, None, fraction)
