"""Blocks, train tokens, rates and perplexities of `evaluate_blocks`; fp64, tolerance 1e-12 unless it says another."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import cache
from typing import Any

import command
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

import tintc
from tintc.errors import InputError, OptionError
from tintc.evaluation.blocks import Block, cut_blocks
from tintc.evaluation.hints import hint_of
from tintc.evaluation.perplexity import evaluate_blocks, held_out_loss, perplexity
from tintc.ir.special import opening_of
from tintc.runtime.execution.fused.batches import run_together

OPENINGS: list[tuple[int, ...]] = [(), (1000,), (1000, 1001)]


@given(
    length=st.integers(4, 200),
    size=st.integers(5, 50),
    fraction=st.floats(0.5, 0.99),
    opening=st.sampled_from(OPENINGS),
    there=st.booleans(),
    partial=st.booleans(),
)
def test_blocks_are_the_text(
    length: int, size: int, fraction: float, opening: tuple[int, ...], there: bool, partial: bool
) -> None:
    """Each begins with the opening, once; together they are the text without what is said to be left out."""
    text, room = list(range(length)), size - len(opening)
    ids = torch.tensor([*(opening if there else ()), *text])
    if room > length and not partial:
        with pytest.raises(InputError):
            cut_blocks(ids, 50, size, None, fraction, opening)
        return
    blocks = cut_blocks(ids, 50, size, None, fraction, opening, partial)
    pieces = [block.ids.tolist() for block in blocks]
    assert all(tuple(piece[: len(opening)]) == opening for piece in pieces)
    rest = blocks.left_out
    assert [token for piece in pieces for token in piece[len(opening) :]] == text[: length - rest]
    assert [len(piece) for piece in pieces[:-1]] == [size] * (len(pieces) - 1)
    if partial:
        assert rest + len(opening) < max(4, len(opening) + 3)
    else:
        assert rest == length % room
    for block in blocks:
        assert block.train_tokens == math.floor(fraction * len(block.ids)) == int(block.train_mask.sum()) >= 2
        assert block.start == max(block.train_tokens, len(opening)) and block.scored > 0


def test_a_maximum_leaves_nothing_out() -> None:
    """What comes after the last block that was asked for is not a rest."""
    found = [cut_blocks(torch.arange(39), 50, 10, most, 0.5).left_out for most in (1, 3, 4, None)]
    assert found == [0, 0, 9, 9]
    shorter = [cut_blocks(torch.arange(39), 50, 10, most, 0.5, partial=True) for most in (3, 4)]
    assert [len(blocks) for blocks in shorter] == [3, 4] and [blocks.left_out for blocks in shorter] == [0, 0]


@cache
def compiled(**options: Any) -> tintc.TintForCausalLM:
    """One simulator for each set of options, which no test may change."""
    return tintc.compile(tiny_models.gpt2(n_layers=1).double(), **options)


@pytest.fixture(scope="module")
def begun() -> tintc.TintForCausalLM:
    """A simulator whose tokenizer begins a text with a token, and ends it with another."""
    sim = tintc.compile(tiny_models.llama(n_layers=1).double(), inner_lr=0.05)
    sim.tokenizer = command.tokenizer()
    around = [("the", 2), ("dog", 4)]
    inner: Any = sim.tokenizer._tokenizer
    inner.post_processor = TemplateProcessing(single="the $A dog", special_tokens=around)
    return sim


def test_the_opening_is_what_the_tokenizer_puts_in_front(begun: tintc.TintForCausalLM) -> None:
    assert begun.tokenizer("sat").input_ids == [2, *begun.tokenizer("sat", add_special_tokens=False).input_ids, 4]
    assert opening_of(begun.tokenizer) == (2,) and opening_of(None) == () == opening_of(command.tokenizer())


def test_every_block_begins_as_a_text_does(begun: tintc.TintForCausalLM) -> None:
    """Perplexities are those of each piece behind the first token, which is no target; without it others."""
    ids = tiny_models.token_ids(1, 30)[0]
    found = evaluate_blocks(begun, torch.cat([torch.tensor([2]), ids]), 11)
    again = evaluate_blocks(begun, ids, 11)
    pieces = [torch.cat([torch.tensor([2]), piece])[None] for piece in ids.split(10)]
    with torch.no_grad():
        outs = [begun(piece, train_mask=torch.arange(11)[None] < 5, return_before=True) for piece in pieces]
    for name, logits in (("before", [o.logits_before for o in outs]), ("after", [o.logits for o in outs])):
        loss = sum(held_out_loss(one, piece, 5) for one, piece in zip(logits, pieces, strict=True))
        assert getattr(found, f"perplexity_{name}") == pytest.approx(math.exp(loss / 18), rel=1e-12)
    assert (found.opening_tokens, found.blocks, found.tokens_scored, found.tokens_left_out) == (1, 3, 18, 0)
    assert again.perplexity_after == found.perplexity_after
    bare = evaluate_blocks(begun, ids, 11, bos=False)
    assert (bare.opening_tokens, bare.blocks, bare.tokens_left_out) == (0, 2, 8)
    assert bare.perplexity_before != found.perplexity_before


def test_a_shorter_last_block(begun: tintc.TintForCausalLM) -> None:
    ids = tiny_models.token_ids(1, 26)[0]
    whole, last = evaluate_blocks(begun, ids[:20], 11), evaluate_blocks(begun, ids[20:], 7)
    left, both = evaluate_blocks(begun, ids, 11), evaluate_blocks(begun, ids, 11, partial=True)
    assert left.perplexity_after == whole.perplexity_after and left.tokens_left_out == 6
    together = (12 * math.log(whole.perplexity_after) + 4 * math.log(last.perplexity_after)) / 16
    assert both.perplexity_after == pytest.approx(math.exp(together), rel=1e-12)
    assert (both.blocks, both.tokens_scored, both.tokens_left_out) == (3, 16, 0)


@pytest.mark.parametrize(
    "case",
    ["one step", "normalised", "two steps", pytest.param("literal", marks=pytest.mark.slow), "split", "captured"],
)
def test_several_rates_in_one_run(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gives what it gives alone, whether one backward pass serves them all or not; the best stands above."""
    options: dict[str, Any] = {"inner_lr": 0.05, "descend": "values,out,ffn,norm-bias,norm-gain"}
    if case == "normalised":
        options |= {"optimizer": "normalized", "momentum": 0.5, "decay": 0.1}
    sim = compiled(n_steps=2 if case in ("two steps", "split") else 1, **options)
    monkeypatch.setattr(sim, "executor", "literal" if case == "literal" else "auto")
    ids, given = tiny_models.token_ids(1, 36)[0], {"block_size": 18, "split_steps": case == "split"}
    rates = [0.3, 0.0, 0.02, 1e200]
    with sim.capture("step0.updates.*") if case == "captured" else nullcontext():
        found = evaluate_blocks(sim, ids, rates=rates, **given)
    assert found.rates is not None and [one["inner_lr"] for one in found.rates] == rates
    alone = [evaluate_blocks(sim, ids, inner_lr=rate, **given) for rate in rates[:3]]
    for one, wanted in zip(found.rates, alone, strict=False):
        assert one["perplexity_after"] == pytest.approx(wanted.perplexity_after, rel=1e-9)
    assert found.rates[3]["perplexity_after"] is None
    assert found.perplexity_before == pytest.approx(alone[0].perplexity_before, rel=1e-12)
    best = min(alone, key=lambda one: one.perplexity_after)
    assert found.perplexity_after == pytest.approx(best.perplexity_after, rel=1e-9)
    assert found.inner_lr == best.inner_lr and found.to_json()["rates"] == found.rates
    assert "rates" not in alone[0].to_json()


def test_one_backward_pass_serves_several_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    sim, runs = compiled(), []
    monkeypatch.setattr(
        "tintc.evaluation.rate_sweep.run_together", lambda *a, **k: runs.append(a) or run_together(*a, **k)
    )
    monkeypatch.setattr(sim, "execute", None)
    evaluate_blocks(sim, tiny_models.token_ids(1, 24)[0], 12, rates=[0.1, 0.2, 0.3])
    assert len(runs) == 2


@pytest.mark.parametrize("rates", [[], [0.1, -1.0], [math.nan], [math.inf]])
def test_rates_that_are_none(rates: list[float]) -> None:
    with pytest.raises(OptionError, match="rate"):
        evaluate_blocks(compiled(), tiny_models.token_ids(1, 24)[0], rates=rates)


def test_a_hint_where_it_got_worse() -> None:
    """Of a rate that hardly any model gains from, rates of other orders of magnitude, whatever it was."""
    sim, ids = compiled(), tiny_models.token_ids(1, 24)[0]
    worse = evaluate_blocks(sim, ids, inner_lr=10.0)
    assert worse.perplexity_after > worse.perplexity_before and worse.hint is not None
    assert "12 in a block" in worse.hint and worse.hint.endswith("--lr 0.001,0.0001,1e-05,1e-06.")
    several = evaluate_blocks(sim, ids, rates=[10.0, 30.0])
    assert several.hint == worse.hint
    by_layer = evaluate_blocks(sim, ids, inner_lr={"default": 10.0})
    assert by_layer.inner_lr == {"default": 10.0} and str(by_layer.hint).endswith("try smaller learning rates.")
    assert evaluate_blocks(sim, ids, inner_lr=0.0).hint is None


@pytest.mark.parametrize(
    ("after", "tried", "suggested"),
    [
        (11.0, [1e-4], "3e-05,1e-05,3e-06"),
        (1e9, [1e-4], "1e-05,1e-06,1e-07,1e-08"),
        (1e9, [1e3], "0.001,0.0001,1e-05,1e-06"),
        (11.0, [1e3, 1e2], "0.001,0.0001,1e-05,1e-06"),
        (11.0, [1e-3, 2e-5], "6e-06,2e-06,6e-07"),
    ],
)
def test_rates_are_suggested_by_how_far_off_they_were(after: float, tried: list[float], suggested: str) -> None:
    """A little worse than a perplexity of 10: a little less than the smallest; ruined: other orders of magnitude."""
    assert str(hint_of(10.0, after, tried, "64 in a block")).endswith(f"such as --lr {suggested}.")


def test_the_hint_of_normalised_steps_says_nothing_of_sums() -> None:
    sim, ids = compiled(optimizer="normalized"), tiny_models.token_ids(1, 24)[0]
    hint = str(evaluate_blocks(sim, ids, inner_lr=30.0).hint)
    assert "as long as the learning rate says" in hint and "summed" not in hint
    assert hint.endswith("--lr 0.1,0.01,0.001,0.0001.")


@given(train=st.integers(2, 40), steps=st.integers(1, 9))
def test_steps_share_the_train_tokens(train: int, steps: int) -> None:
    block = Block(torch.zeros(50), train, train)
    if train < 2 * steps:
        with pytest.raises(OptionError, match="each needs two"):
            block.step_masks(steps)
        return
    masks = block.step_masks(steps)
    assert torch.equal(masks.sum(0), block.train_mask) and masks.shape == (steps, 1, 50)
    assert int(masks.sum(-1).max() - masks.sum(-1).min()) <= 1


def test_every_step_may_train_on_a_part_of_its_own() -> None:
    sim, ids = compiled(n_steps=2, inner_lr=0.05), tiny_models.token_ids(1, 16)
    masks = torch.zeros(2, 1, 16)
    masks[0, 0, :4], masks[1, 0, 4:8] = 1, 1
    found = evaluate_blocks(sim, ids[0], split_steps=True)
    with torch.no_grad():
        wanted = held_out_loss(sim(ids, train_mask=masks).logits, ids, 8) / 8
    assert found.perplexity_after == pytest.approx(math.exp(wanted), rel=1e-12)
    assert found.perplexity_after != evaluate_blocks(sim, ids[0]).perplexity_after


def test_default_block_is_the_text_or_the_longest() -> None:
    for length, size, most, wanted in ((30, None, None, (1, 30)), (120, None, None, (2, 50)), (120, 10, 3, (3, 10))):
        blocks = cut_blocks(torch.arange(length), 50, size, most, 0.5)
        assert (len(blocks), blocks.size) == wanted and all(len(block.ids) == blocks.size for block in blocks)


def test_held_out_loss_scores_test_targets_only() -> None:
    """Uniform logits, but sure and wrong where a train token is the target: those must not count."""
    logits, ids = torch.zeros(1, 8, 5), torch.zeros(1, 8, dtype=torch.long)
    logits[:, :3, 1] = 100
    assert held_out_loss(logits, ids, 4) == pytest.approx(4 * math.log(5), rel=1e-6)


def test_before_is_the_model_itself() -> None:
    model = tiny_models.llama(n_layers=1).double()
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
    sim = compiled()
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
