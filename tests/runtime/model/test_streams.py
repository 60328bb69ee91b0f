"""Streams beside loops written out with autograd: weights and scores. fp64, 1e-9 of the update and of the losses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from continuations import compiled, continued
from explicit_streams import ExplicitLoop
from fused_cases import FAMILIES, relative_to_update, run, token_ids
from torch import Tensor

import tintc
from tintc.errors import InputError, OptionError
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.causal_lm import TintForCausalLM
from tools.sweep.tiny import tiny_model

RATE = 0.02
TEXTS = token_ids(2, 19)
PROBE = token_ids(1, 11, seed=9)
EXECUTORS = ("fused", "literal")


def sim_of(name: str, executor: str, n_steps: int = 1) -> TintForCausalLM:
    """A simulator of a family's upper two layers; at most 16 tokens, so that the texts are longer."""
    sim = compiled(name, inner_lr=RATE, n_steps=n_steps, n_update_layers=2, max_length=16)
    sim.executor = executor
    return sim


def loop_of(name: str, n_steps: int = 1) -> ExplicitLoop:
    return ExplicitLoop.of(FAMILIES[name](), RATE, n_steps, 2)


def off(sim: TintForCausalLM, state: AdaptedState, loop: ExplicitLoop) -> float:
    """How far what a state of one text predicts is from what the loop does, as a part of the update."""
    executor, sim.executor = sim.executor, "fused"
    try:
        return relative_to_update(continued(sim, PROBE, state)[0], loop.logits(PROBE)[0], loop.then_logits(PROBE[0]))
    finally:
        sim.executor = executor


def check_stream(sim: TintForCausalLM, texts: Tensor, loops: Sequence[ExplicitLoop], *sizes: int) -> None:
    stream = sim.stream(texts, *sizes)
    for row, loop in enumerate(loops):
        scores = torch.tensor(loop.scores, dtype=torch.float64)
        assert torch.allclose(stream.streamed[:, row], scores[:, 0], rtol=1e-9, atol=0)
        assert torch.allclose(stream.frozen[:, row], scores[:, 1], rtol=1e-9, atol=0)
        assert off(sim, stream.state.select([row]), loop) < 1e-9
    assert float((stream.streamed - stream.frozen)[1:].abs().min()) > 1e-4
    assert not bool((stream.streamed - stream.frozen)[0].any())


CASES = [
    ("gpt2", 1, 8, 0, 1),
    ("llama", 1, 7, 9, 2),
    ("llama", 2, 12, 3, 1),
    pytest.param("opt", 2, 5, 11, 2, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "n_steps", "chunk_size", "context", "rows"), CASES)
def test_a_stream_is_an_explicit_loop(name: str, n_steps: int, chunk_size: int, context: int, rows: int) -> None:
    """Each row of a batch, in both executors; chunks that do not divide the text."""
    loops: list[ExplicitLoop] = []
    for text in TEXTS[:rows]:
        loop = loop_of(name, n_steps)
        loop.stream(text, chunk_size, context)
        loops.append(loop)
    for executor in EXECUTORS:
        check_stream(sim_of(name, executor, n_steps), TEXTS[:rows], loops, chunk_size, context)


MASK = torch.tensor([0] * 3 + [1] * 7)
FIRST, SECOND = token_ids(4, 10).reshape(2, 2, 10)


@cache
def learnt(*texts: tuple[int, ...]) -> ExplicitLoop:
    """What has learnt these texts, one after the other."""
    loop = loop_of("llama")
    for text in texts:
        loop.learn(torch.tensor(text), MASK)
    return loop


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("update", ["auto", "lazy"])
def test_adapting_goes_on_from_a_state(executor: str, update: str) -> None:
    """Two texts after each other, each row from its own weights, with tokens left out; and one state for all rows."""
    masks = MASK.expand(2, -1)
    sim = sim_of("llama", executor)
    sim.update = update
    try:
        first = sim.adapt(FIRST, train_mask=masks)
        shared = sim.adapt(FIRST[:1], train_mask=masks[:1])
        both = sim.adapt(SECOND, train_mask=masks, state=first)
        onward = sim.adapt(SECOND, train_mask=masks, state=shared)
    finally:
        sim.update = "auto"
    one, two = ([tuple(text.tolist()) for text in texts] for texts in (FIRST, SECOND))
    for row in range(2):
        assert off(sim, first.select([row]), learnt(one[row])) < 1e-9, "a state stays as it is"
        assert off(sim, both.select([row]), learnt(one[row], two[row])) < 1e-9
        assert off(sim, onward.select([row]), learnt(one[0], two[row])) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("executor", EXECUTORS)
def test_experts_learn_along_a_stream(executor: str) -> None:
    model = tiny_model("mixtral")
    sim = tintc.compile(model.double(), inner_lr=RATE, n_update_layers=1, max_length=24)
    sim.executor = executor
    loop = ExplicitLoop.of(model, RATE, layers=1)
    loop.stream(TEXTS[0], 8, 5)
    check_stream(sim, TEXTS[:1], [loop], 8, 5)


def test_texts_of_unequal_lengths_are_streamed_as_alone() -> None:
    """Padding on either side; a row that has ended learns no more."""
    sim = sim_of("llama", "fused")
    mask = torch.ones_like(TEXTS)
    mask[0, :9] = 0
    padded = sim.stream(TEXTS, 6, 4, attention_mask=mask)
    for row, text in enumerate((TEXTS[0, 9:], TEXTS[1])):
        alone = sim.stream(text, 6, 4)
        count = len(alone)
        assert torch.allclose(padded.streamed[:count, row], alone.streamed[:, 0], rtol=1e-9, atol=0)
        assert torch.equal(padded.tokens[:count, row], alone.tokens[:, 0])
        assert not padded.tokens[count:, row].any() and not padded.streamed[count:, row].any()
        states = padded.state.select([row]), alone.state
        found, right = (continued(sim, PROBE, state) for state in states)
        assert relative_to_update(found, right, run(sim, PROBE, return_before=True).logits_before) < 1e-9


def test_a_stream_goes_on_from_a_state_and_leaves_it() -> None:
    """Two parts are the whole where no context is read; what was frozen is then the state."""
    sim = sim_of("gpt2", "fused")
    whole = sim.stream(TEXTS[0, :18], 6)
    part = sim.stream(TEXTS[0, :6], 6)
    kept = continued(sim, PROBE, part.state)
    rest = sim.stream(TEXTS[0, 6:18], 6, state=part.state)
    assert torch.allclose(torch.cat((part.streamed, rest.streamed)), whole.streamed, rtol=1e-9, atol=0)
    assert torch.equal(rest.frozen[0], rest.streamed[0]) and not torch.equal(rest.frozen[1], rest.streamed[1])
    assert torch.equal(continued(sim, PROBE, part.state), kept)
    assert whole.perplexity_frozen != whole.perplexity_streamed
    silent = sim.stream(TEXTS[0, :18], 6, frozen=False)
    assert torch.equal(silent.streamed, whole.streamed)
    with pytest.raises(OptionError, match="leave out frozen=False"):
        _ = silent.frozen


def test_a_stream_runs_when_it_is_asked() -> None:
    sim = sim_of("gpt2", "fused")
    stream = sim.stream(TEXTS, 8, inner_lr=torch.tensor([0.0, RATE]))
    first = next(iter(stream))
    assert (first.start, first.stop, len(stream)) == (0, 8, 3) and first.tokens.tolist() == [7, 7]
    assert [chunk.stop for chunk in stream] == [8, 16, 19]
    learnt = (stream.streamed - stream.frozen).abs()[1:].amin(0)
    assert float(learnt[0]) < 1e-12 and float(learnt[1]) > 1e-3, "a rate of each row"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no chunk": ({"chunk_size": 0}, "chunk size is 0; it must be a number of tokens, at least 1"),
    "half a chunk": ({"chunk_size": 2.5}, "chunk size is 2.5"),
    "context": ({"chunk_size": 4, "context": -1}, "context is -1; it must be a number of tokens, at least 0"),
    "too long": ({"chunk_size": 12, "context": 5}, "12 tokens with 5 before it would be 17; .* at most 16"),
}


@pytest.mark.parametrize("case", WRONG)
def test_chunks_that_do_not_fit(case: str) -> None:
    given, message = WRONG[case]
    with pytest.raises(OptionError, match=message):
        sim_of("gpt2", "fused").stream(TEXTS, **given)


def test_texts_and_states_that_do_not_fit() -> None:
    sim = sim_of("gpt2", "fused")
    with pytest.raises(InputError, match="pass at least 2"):
        sim.stream(TEXTS[0, :1], 4)
    with pytest.raises(OptionError, match="weights of 2 examples and the batch 1 rows"):
        sim.stream(TEXTS[:1], 4, state=sim.adapt(TEXTS[:, :8]))
    with pytest.raises(OptionError, match="is of type dict"):
        sim.adapt(TEXTS[:, :8], state={})  # pyright: ignore[reportArgumentType]
    with sim.capture("*"), pytest.raises(OptionError, match="call it outside their blocks"):
        sim.stream(TEXTS[0], 4)
