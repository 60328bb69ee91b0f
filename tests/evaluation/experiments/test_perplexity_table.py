"""`tintc eval ppl`: every number is what a simulator, or explicit tuning written out, gives; fp64."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from command import WORDS, Command
from torch.nn import functional as F

import tintc
from tintc.evaluation.experiments.bootstrap import interval
from tintc.evaluation.experiments.columns import Column
from tintc.evaluation.rate_grid import set_rate
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.source.load import load_auxiliary
from tintc.reference.approximations import DESCENDS, Approximations
from tintc.reference.tune import tune

EXACT = Approximations(groups=DESCENDS, train_tokens=True)


def lines(count: int, seed: int) -> str:
    """Lines of words, some of them empty."""
    generator = random.Random(seed)
    rows = [" ".join(generator.choices(WORDS, k=generator.randint(0, 7))) for _ in range(count)]
    return "\n".join(rows) + "\n"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "words.test.txt").write_text(lines(20, 0))
    (folder / "words.valid.txt").write_text(lines(11, 1))
    (folder / "alone.txt").write_text(lines(30, 2))
    return folder


def blocks(sim: Any, text: str, size: int) -> list[torch.Tensor]:
    """The protocol, written out: rows one by one, without empty ones, joined and cut."""
    ids = [token for row in text.splitlines() if row.strip() for token in sim.tokenizer(row)["input_ids"]]
    return [torch.tensor([ids[at : at + size]]) for at in range(0, len(ids) - size + 1, size)]


def perplexity(logits: list[torch.Tensor], ids: list[torch.Tensor], start: int) -> float:
    losses = [
        F.cross_entropy(one[0, start - 1 : -1], row[0, start:], reduction="sum")
        for one, row in zip(logits, ids, strict=True)
    ]
    return math.exp(float(sum(losses)) / sum(row.shape[1] - start for row in ids))


def test_every_column(command: Command, one_layer: Path, one_layer_sim: Path, texts: Path) -> None:
    """Relative to perplexities whose differences are above 1e-3, all within 1e-9."""
    rate = 0.05
    file = texts / "words.test.txt"
    arguments = ["--model", one_layer, "--dataset", file, "--block-size", 9, "--train-fraction", "0.5,0.7"]
    chosen = ["--columns", "before,explicit,explicit-normalized,tint", "--dtype", "float64", "--rates", rate]
    shown = command("eval", "ppl", one_layer_sim, *arguments, *chosen, "--json")
    assert shown.code == 0, shown.err
    rows = shown.json["rows"]
    assert [row["train_fraction"] for row in rows] == [0.5, 0.7]
    sim = tintc.load(one_layer_sim, dtype="float64")
    ids, graph = blocks(sim, file.read_text(), 9), capture(load_auxiliary(str(one_layer)).model)
    for row, train in zip(rows, (4, 6), strict=True):
        assert (row["blocks"], row["tokens"]) == (len(ids), len(ids) * (9 - train))
        masks = [torch.arange(9)[None] < train] * len(ids)
        with torch.no_grad():
            outs = [sim(one, mask, inner_lr=rate, return_before=True) for one, mask in zip(ids, masks, strict=True)]
        tuned = [
            tune(graph, one, mask, inner_lr=rate, approximations=EXACT) for one, mask in zip(ids, masks, strict=True)
        ]
        expected = {
            "before": perplexity([out.logits_before for out in outs], ids, train),
            "tint": perplexity([out.logits for out in outs], ids, train),
            "explicit": perplexity([one.logits for one in tuned], ids, train),
        }
        found = row["perplexity"]
        assert abs(expected["explicit"] - expected["tint"]) > 1e-3
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-9), name
        assert row["rates"] == dict.fromkeys(("explicit", "explicit-normalized", "tint"), rate)
        for name, ends in row["interval"].items():
            assert ends[0] < found[name] < ends[1]


def test_streams(command: Command, one_layer_sim: Path, texts: Path, tmp_path: Path) -> None:
    """Weights go on from block to block, along the scored text and, for the choice of a rate, along the other; what was
    kept is not run again. fp64, 1e-9."""
    file, rates = texts / "words.test.txt", (0.05, 0.2)
    arguments = ["--dataset", file, "--block-size", 9, "--train-fraction", "0.5", "--dtype", "float64", "--json"]
    chosen = ["--columns", "tint,stream", "--rates", ",".join(map(str, rates)), "--predictions", tmp_path / "kept"]
    shown = command("eval", "ppl", one_layer_sim, *arguments, *chosen)
    assert shown.code == 0, shown.err
    sim = tintc.load(one_layer_sim, dtype="float64")

    def along(name: str, rate: float) -> float:
        state, logits, ids = None, [], blocks(sim, (texts / name).read_text(), 9)
        columns = torch.arange(9)[None]
        for one in ids:
            state = sim.adapt(one[:, :4], train_mask=torch.ones(1, 4), inner_lr=rate, state=state)
            with torch.no_grad():
                logits.append(sim(one, state=state).logits)
            state = sim.adapt(one, train_mask=columns >= 3, loss_mask=columns >= 4, inner_lr=rate, state=state)
        return perplexity(logits, ids, 4)

    row = shown.json["rows"][0]
    assert row["rates"]["stream"] == min(rates, key=lambda rate: along("words.valid.txt", rate))
    assert row["perplexity"]["stream"] == pytest.approx(along("words.test.txt", row["rates"]["stream"]), rel=1e-9)
    assert abs(row["perplexity"]["stream"] / row["perplexity"]["tint"] - 1) > 1e-3
    size = (tmp_path / "kept").stat().st_size
    assert command("eval", "ppl", one_layer_sim, *arguments, *chosen).json == shown.json
    assert (tmp_path / "kept").stat().st_size == size


def test_normalised_steps(command: Command, one_layer: Path, one_layer_sim: Path, texts: Path) -> None:
    """Every matrix and bias moves by the rate: a gradient of any size gives the same."""
    from tintc.evaluation.experiments.explicit import ExplicitTuning, TrainText

    sim = tintc.load(one_layer_sim)
    tuning = ExplicitTuning(load_auxiliary(str(one_layer)).model.double(), sim.program)
    before = {name: tensor.detach().clone() for name, tensor in tuning.tensors.items()}
    ids = torch.arange(9) % len(WORDS)
    targets = torch.arange(9) > 0

    def moved() -> dict[str, float]:
        return {name: float((tensor - before[name]).detach().norm()) for name, tensor in tuning.tensors.items()}

    ((once, _), (twice, same)) = (
        tuning.after([TrainText(ids, targets)] * count, [0.5, 0.25], True, moved) for count in (1, 2)
    )
    assert same == pytest.approx({name: step / 2 for name, step in once.items()}, rel=1e-12)
    assert twice == pytest.approx(once, rel=1e-12)
    for part in tuning.parts.values():
        alone = sum(other.source == part.source for other in tuning.parts.values()) == 1
        assert not alone or once[part.source] == pytest.approx(0.5, rel=1e-12), part.source
    assert all(torch.equal(tensor, before[name]) for name, tensor in tuning.tensors.items())


def test_rates_are_chosen_on_other_text(command: Command, one_layer_sim: Path, texts: Path) -> None:
    """On the file that is named so, or on the last lines, which are then not scored; the best on the test text, which
    may be another, is not looked for."""
    options = ("--block-size", 9, "--train-fraction", 0.5, "--columns", "before,tint", "--json")
    grid = (1e-3, 0.1, 1.0)
    many = ",".join(map(str, grid))
    validation = {}
    for rate in grid:
        alone = command("eval", "ppl", one_layer_sim, "--dataset", texts / "words.valid.txt", "--rates", rate, *options)
        assert alone.code == 0, alone.err
        validation[rate] = alone.json["rows"][0]["perplexity"]["tint"]
    shown = command("eval", "ppl", one_layer_sim, "--dataset", texts / "words.test.txt", "--rates", many, *options)
    assert shown.json["rows"][0]["rates"]["tint"] == min(grid, key=lambda rate: validation[rate])
    whole = command("eval", "ppl", one_layer_sim, "--dataset", texts / "alone.txt", *options)
    part = command("eval", "ppl", one_layer_sim, "--dataset", texts / "alone.txt", "--rates", many, *options)
    assert part.json["rows"][0]["tokens"] < whole.json["rows"][0]["tokens"]
    assert "which are not scored" in part.err and not whole.err


def test_an_interrupted_run_goes_on(
    command: Command, one_layer_sim: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.jsonl"
    text = ("--dataset", texts / "words.test.txt", "--block-size", 9, "--train-fraction", "0.5,0.7")
    run = ("eval", "ppl", one_layer_sim, *text, "--json")
    whole = command(*run, "--predictions", kept)
    records = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join(records[:5]) + records[5][:20])
    runs = []
    for kind in Column.__subclasses__()[0], *Column.__subclasses__()[0].__subclasses__():
        if "scores" in vars(kind):
            scores = kind.scores
            monkeypatch.setattr(
                kind, "scores", lambda self, *a, scores=scores: runs.append(self.name) or scores(self, *a)
            )
    assert command(*run, "--predictions", kept).json == whole.json
    again = len(json.loads(b"[" + b",".join(kept.read_bytes().splitlines()) + b"]"))
    assert again == len(records) and len(runs) > 0
    runs.clear()
    assert command(*run, "--predictions", kept).json == whole.json and runs == []
    kept.write_text("{}\n{}\n")
    refused = command(*run, "--predictions", kept)
    assert refused.code == 2 and "line 1, is no result" in refused.err


def test_interval() -> None:
    """Of a mean of many draws it is the normal one, 1.96 standard errors to either side; within a tenth."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(400, generator=generator, dtype=torch.float64)
    low, high = interval([[float(value)] for value in values], lambda sums: sums[:, 0] / 400)
    error = 1.96 * float(values.std()) / 20
    assert low == pytest.approx(float(values.mean()) - error, abs=0.1 * error)
    assert high == pytest.approx(float(values.mean()) + error, abs=0.1 * error)


MISTAKES = {
    ("--columns", "before,best"): "The column 'best' is unknown; choose among before,",
    ("--columns", "explicit"): "needs the model that was compiled; pass it to --model",
    ("--rates", "1e-3,x"): "The learning rate is '1e-3,x'",
    ("--rates=-1",): "The learning rate is -1.0; it must be a finite number",
    ("--train-fraction", "half"): "The train fraction is 'half'",
    ("--train-fraction", "1.5"): "The train fraction is 1.5; it must lie between 0 and 1",
    ("--data", "nowhere"): "nowhere is no folder",
}


@pytest.mark.parametrize("given", MISTAKES, ids=" ".join)
def test_mistakes(command: Command, one_layer_sim: Path, texts: Path, given: tuple[str, ...]) -> None:
    file = ("--dataset", texts / "words.test.txt", "--block-size", 9)
    shown = command("eval", "ppl", one_layer_sim, *file, *given, "--json")
    assert (shown.code, shown.out) == (2, "")
    assert MISTAKES[given] in shown.err


def test_several_simulators(command: Command, one_layer_sim: Path, texts: Path, tmp_path: Path) -> None:
    """Each has a column of its own, and takes the rate that it stores."""
    file = ("--dataset", texts / "words.test.txt", "--block-size", 9, "--max-blocks", 2, "--train-fraction", 0.5)
    faster = tintc.load(one_layer_sim)
    set_rate(faster, 0.03)
    faster.save_pretrained(tmp_path / "faster")
    sims = (one_layer_sim, tmp_path / "faster")
    row = command("eval", "ppl", *sims, *file, "--json").json["rows"][0]
    together = row["perplexity"]
    assert {*together} == {"before", *(f"tint:{sim}" for sim in sims)}
    assert row["rates"] == {f"tint:{one_layer_sim}": 0.01, f"tint:{tmp_path / 'faster'}": 0.03}
    for sim in sims:
        alone = command("eval", "ppl", sim, *file, "--json").json["rows"][0]["perplexity"]
        assert together[f"tint:{sim}"] == alone["tint"]
