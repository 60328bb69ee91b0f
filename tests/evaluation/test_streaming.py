"""`tintc run --stream`: what it prints is what `sim.stream` gives; mistakes are one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import STORY, Command

import tintc
from tintc.evaluation.streaming import evaluate_stream

GIVEN = ("--text", STORY, "--stream", "--chunk-size", 8)


def test_what_it_prints_is_what_python_gives(command: Command, one_layer_sim: Path, tmp_path: Path) -> None:
    """fp32, to 1e-6: the same run. Weights that were saved are gone on from."""
    given = ("run", one_layer_sim, *GIVEN, "--context", 4, "--lr", 0.1)
    found = command(*given, "--json", "--save-state", tmp_path / "end")
    assert found.code == 0 and not found.err, found.err
    sim = tintc.load(one_layer_sim)
    ids = sim.tokenizer(STORY, return_tensors="pt").input_ids[0]
    stream = sim.stream(ids, 8, 4, inner_lr=0.1)
    values = found.json
    assert values["perplexity_frozen"] == pytest.approx(stream.perplexity_frozen, rel=1e-6)
    assert values["perplexity_streamed"] == pytest.approx(stream.perplexity_streamed, rel=1e-6)
    assert values["perplexity_streamed"] < 0.99 * values["perplexity_frozen"]
    assert (values["chunks"], values["tokens_scored"], values["inner_lr"]) == (5, int(stream.tokens.sum()), 0.1)
    again = command(*given, "--json", "--state", tmp_path / "end").json
    onward = sim.stream(ids, 8, 4, inner_lr=0.1, state=stream.state)
    assert again["perplexity_frozen"] == pytest.approx(onward.perplexity_frozen, rel=1e-5)
    assert again["perplexity_streamed"] == pytest.approx(onward.perplexity_streamed, rel=1e-5)
    shown = command(*given)
    assert "perplexity_streamed" in shown.out and shown.code == 0


WRONG: dict[str, tuple[tuple[Any, ...], str]] = {
    "no size": (("--text", STORY, "--stream"), "pass their size with --chunk-size"),
    "blocks": ((*GIVEN, "--block-size", 8), "A stream has chunks and no blocks; leave out --block-size."),
    "a block's": (("--text", STORY, "--context", 8), "--context is for streams; pass --stream with it"),
    "rates": ((*GIVEN, "--lr", "0.1,0.2"), "A stream learns at one learning rate"),
    "no state": ((*GIVEN, "--state", "nowhere"), "nowhere"),
    "no folder": ((*GIVEN, "--save-state", "no/where"), "The folder no does not exist"),
    "ruined": ((*GIVEN, "--lr", 1e12), "is too large; choose a smaller one"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes(command: Command, one_layer_sim: Path, case: str) -> None:
    given, message = WRONG[case]
    found = command("run", one_layer_sim, *given)
    assert found.code == 2 and not found.out and message in found.err
    assert len(found.err.splitlines()) == 1


def test_a_hint_where_learning_made_it_worse(one_layer_sim: Path) -> None:
    sim = tintc.load(one_layer_sim)
    ids = sim.tokenizer(STORY, return_tensors="pt").input_ids[0]
    evaluation, state = evaluate_stream(sim, ids, 8, inner_lr=100.0)
    assert evaluation.perplexity_streamed > evaluation.perplexity_frozen
    assert evaluation.hint is not None and "8 in a chunk" in evaluation.hint and state.examples == 1
