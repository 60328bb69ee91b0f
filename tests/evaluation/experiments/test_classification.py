"""`tintc eval icl`: label scores are what a simulator, or explicit tuning written out, gives.

fp64, 1e-9; 1e-6 where transformers' model itself runs, whose norms and rotations are in fp32 whatever its dtype (6e-8
was measured)."""

from __future__ import annotations

import json
import random
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import pytest
import tiny_models
import torch
from command import ROOT, WORDS, Command, tokenizer
from jsonschema import Draft202012Validator

import tintc
from tintc import masks
from tintc.errors import InputError
from tintc.evaluation.experiments.classification import (
    SEPARATOR,
    Question,
    Setting,
    answers,
    check_lengths,
    correct,
)
from tintc.evaluation.experiments.columns import Explicit, InContext, Simulated, Unchanged
from tintc.evaluation.experiments.explicit import ExplicitTuning
from tintc.evaluation.experiments.records import Records
from tintc.evaluation.experiments.tasks import Example, Task, balanced, chosen_tasks, drawn, known_tasks
from tintc.evaluation.processes import Processes
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.trace_model import capture
from tintc.reference.approximations import DESCENDS, Approximations
from tintc.reference.tune import tune

TASK = Task("mood", "the {text} was", (" happy", " sad"), "mood", "", "")
LONG = Task("mood", "the {text} was", (" happy", " sad dog"), "mood", "", "")
SHOWN = (Example("cat on tree", 1), Example("big dog", 0), Example("red bird sat", 0))
ASKED = [Example("dog", 1), Example("tree and cat", 0)]
RATES = (0.02, 0.05)
ALONE = Processes()


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_models.llama(n_layers=1).double()


@pytest.fixture(scope="module")
def graph(model: Any) -> CapturedGraph:
    return capture(model)


@pytest.fixture(scope="module")
def sim(model: Any, graph: CapturedGraph) -> tintc.TintForCausalLM:
    made = tintc.compile(model, inner_lr=0.05)
    made.tokenizer = tokenizer()
    return made


def ids_of(text: str) -> torch.Tensor:
    return torch.tensor([tokenizer()(text)["input_ids"]])


def label_scores(logits: torch.Tensor, task: Task, given: str, call: Any = None) -> list[float]:
    """Log-probabilities of one-word labels after the last token."""
    words = [tokenizer()(label)["input_ids"] for label in task.labels]
    return [float(logits[0, -1].log_softmax(-1)[word[0]]) for word in words]


@pytest.mark.parametrize("loss", ["label", "full"])
@pytest.mark.parametrize("format", ["single", "multi"])
def test_few_shot(
    sim: tintc.TintForCausalLM,
    model: Any,
    graph: CapturedGraph,
    format: Literal["single", "multi"],
    loss: Literal["label", "full"],
) -> None:
    """The simulator's column is the forward pass on the masks of `few_shot`, the explicit one the same tuning."""
    setting = Setting(TASK, SHOWN, format, loss, calibrated=False)
    scores = answers(Simulated("tint", sim), sim.tokenizer, 99, setting, ASKED, RATES, Records(None), ALONE)
    explicit = Explicit("explicit", sim, ExplicitTuning(model, sim.program), False)
    exact = answers(explicit, sim.tokenizer, 99, setting, ASKED, RATES, Records(None), ALONE)
    for row, exact_row, example in zip(scores, exact, ASKED, strict=True):
        query = TASK.query(example.text)
        arguments: Any = masks.few_shot(sim.tokenizer, setting.pairs, query, format, loss, SEPARATOR)
        for rate, found, found_exact in zip(RATES, row, exact_row, strict=True):
            with torch.no_grad():
                out = sim(**arguments, inner_lr=rate)
            assert found == pytest.approx(label_scores(out.logits, TASK, query), abs=1e-9)
            tuned = tune(
                graph,
                **arguments,
                inner_lr=rate,
                approximations=Approximations(groups=DESCENDS, train_tokens=True),
            )
            assert found_exact == pytest.approx(label_scores(tuned.logits, TASK, query), abs=1e-6)
            assert found != pytest.approx(found_exact, abs=1e-5)


def test_zero_shot(sim: tintc.TintForCausalLM) -> None:
    """The query is trained on, each by itself."""
    setting = Setting(TASK, (), "single", "full", calibrated=False)
    scores = answers(Simulated("tint", sim), sim.tokenizer, 99, setting, ASKED, RATES, Records(None), ALONE)
    for row, example in zip(scores, ASKED, strict=True):
        ids = ids_of(TASK.query(example.text))
        with torch.no_grad():
            logits = sim(ids, torch.ones_like(ids), inner_lr=RATES[1]).logits
        assert row[1] == pytest.approx(label_scores(logits, TASK, ""), abs=1e-9)


def test_calibration_and_context(sim: tintc.TintForCausalLM, model: Any) -> None:
    """Calibrated: less what the query without text scores. In context: the model reads the demonstrations."""
    for column, before in ((Unchanged("before", sim), ""), (InContext("icl", sim), None)):
        setting = Setting(TASK, SHOWN, "single", "label", calibrated=True)
        if before is None:
            before = setting.context
        scores = answers(column, sim.tokenizer, 99, setting, ASKED, [0.0], Records(None), ALONE)
        with torch.no_grad():
            empty = label_scores(model(ids_of(before + TASK.query(""))).logits, TASK, "")
            for row, example in zip(scores, ASKED, strict=True):
                own = label_scores(model(ids_of(before + TASK.query(example.text))).logits, TASK, "")
                assert row[0] == pytest.approx([a - b for a, b in zip(own, empty, strict=True)], abs=1e-6)


def test_labels_of_several_tokens(sim: tintc.TintForCausalLM, model: Any) -> None:
    """Their log-probabilities are summed."""
    setting = Setting(LONG, (), "single", "full", calibrated=False)
    scores = answers(Unchanged("before", sim), sim.tokenizer, 99, setting, ASKED[:1], [0.0], Records(None), ALONE)
    query = LONG.query(ASKED[0].text)
    expected = []
    for label in LONG.labels:
        ids = ids_of(query + label)
        start = ids_of(query).shape[1]
        with torch.no_grad():
            logits = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        expected.append(float(logits.gather(1, ids[0, start:, None]).sum()))
    assert scores[0][0] == pytest.approx(expected, abs=1e-6)


def test_texts_that_are_too_long(sim: tintc.TintForCausalLM) -> None:
    """A column that reads demonstrations before queries needs the longest text; and they themselves must fit."""
    setting = Setting(TASK, SHOWN, "single", "label", calibrated=False)
    alone, in_context = Unchanged("before", sim), InContext("icl", sim)
    for columns, longest in (([alone], 20), ([alone, in_context], 23)):
        for limit in (longest - 1, longest):
            with (
                nullcontext() if limit == longest else pytest.raises(InputError, match=f"compiled for at most {limit}")
            ):
                check_lengths(columns, sim.tokenizer, limit, setting, ASKED)


def test_questions_and_draws() -> None:
    """Demonstrations are balanced and the same for the same seed; the first of equal scores is the answer."""
    examples = [Example(str(index), index % 3) for index in range(30)]
    for seed in range(4):
        shown = balanced(examples, 7, 3, seed)
        assert sorted([sum(one.label == label for one in shown) for label in range(3)]) == [2, 2, 3]
        assert shown == balanced(examples, 7, 3, seed) and len(set(shown)) == 7
    assert balanced(examples, 7, 3, 0) != balanced(examples, 7, 3, 1)
    assert len(drawn(examples, 99, 0)) == 30
    assert correct([[0.5, 0.5], [0.1, 0.2]], [Example("", 0), Example("", 0)]) == [True, False]
    question = Question(torch.tensor([1, 2]), (torch.tensor([0]), torch.tensor([1])))
    scores = question.log_probabilities(lambda ids, count: torch.tensor([[0.0, 0.0]], dtype=torch.float64))
    assert scores == pytest.approx([-0.6931471805599453] * 2)


def test_the_tasks_are_those_of_the_paper() -> None:
    names = "sst2,mr,cr,mpqa,subj,agnews,amazon"
    assert {task.name for task in chosen_tasks(names)} == {*known_tasks()} == {*names.split(",")}
    for task in known_tasks().values():
        assert "{text}" in task.template and len(task.labels) >= 2 and not task.template.endswith(" ")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    generator = random.Random(0)
    for split, count in (("train", 20), ("test", 7)):
        path = folder / "classification" / "sst2" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"text": " ".join(generator.choices(WORDS, k=4)), "label": index % 2} for index in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_command(
    command: Command, llama_sim: Path, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A row for each setting; other layers and steps are compiled; what is kept is not run again."""
    words = {"sst2": Task("sst2", "the {text} was", (" happy", " sad"), "sst2", "", "")}
    monkeypatch.setattr("tintc.evaluation.experiments.tasks.known_tasks", lambda: words)
    where = ("--data", data, "--predictions", tmp_path / "kept.jsonl", "--json")
    model = ("--model", llama_sim.parent / "model")
    run = ("eval", "icl", llama_sim, *model, "--columns", "before,icl,explicit,tint", "--rates", "1e-3,1e-2")
    sizes = ("--examples", 3, "--seeds", 2, "--validation-examples", 2, "--shots", "0,2")
    shown = command(*run, *sizes, "--format", "single,multi", "--calibration", "none", *where)
    assert shown.code == 0, shown.err
    rows = shown.json["rows"]
    settings = [(row["shots"], row["format"], row["seeds"]) for row in rows]
    assert settings == [(0, None, 1), (2, "single", 2), (2, "multi", 2)]
    assert all(row["examples"] == 3 for row in rows)
    for row in rows:
        for name in ("before", "icl", "explicit", "tint"):
            assert row["accuracy"][name] == pytest.approx(sum(row["by_seed"][name]) / row["seeds"])
            low, high = row["interval"][name]
            assert 0 <= low <= row["accuracy"][name] <= high <= 1
        assert {*row["rates"]} == {"explicit", "tint"} and all(
            len(each) == row["seeds"] for each in row["rates"].values()
        )
    (text,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "json.md").read_text(encoding="utf-8"), re.DOTALL)
    schema = json.loads(text) | {"$ref": "#/$defs/icl"}
    assert [*Draft202012Validator(schema).iter_errors(shown.json)] == []
    other = command(
        *("eval", "icl", llama_sim, *model, *sizes, "--layers-steps", "1x2", "--columns", "before,tint"),
        *("--calibration", "none,prompt", *where),
    )
    settings = [(row["shots"], row["calibration"], row["layers"], row["steps"]) for row in other.json["rows"]]
    assert settings == [(0, "none", 1, 2), (0, "prompt", 1, 2), (2, "none", 1, 2), (2, "prompt", 1, 2)]
    wrong = command("eval", "icl", llama_sim, *sizes, "--layers-steps", "twelve", *where)
    assert wrong.code == 2 and "pass such as 12x1" in wrong.err
    long = command("eval", "icl", llama_sim, *sizes, "--shots", 16, *where)
    assert long.code == 2 and "Compile with a larger max length" in long.err


def test_demonstrations_are_read_once(sim: tintc.TintForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The context of many queries, and scores without an update, whatever the set of demonstrations is trained on."""
    from tintc.evaluation.experiments import columns

    read: list[int] = []
    run = columns.predict
    monkeypatch.setattr(columns, "predict", lambda sim, ids, *more: read.append(ids.shape[1]) or run(sim, ids, *more))
    records = Records(None)
    for loss in ("label", "full"):
        setting = Setting(TASK, SHOWN, "multi", loss, calibrated=False)
        for column in (InContext("icl", sim), Unchanged("before", sim), Simulated("tint", sim)):
            answers(column, sim.tokenizer, 99, setting, ASKED, [0.02], records, ALONE)
    context = len(tokenizer()(setting.context)["input_ids"])
    each = [context + 1, 2, 4]  # of the two queries, after what they share
    assert read == 4 * each  # "the" opens every query; "icl" and "before" are run for the first loss alone


def test_the_head_sees_what_is_scored(model: Any, sim: tintc.TintForCausalLM) -> None:
    """Explicit tuning's logits of the last tokens are those of all, cut; fp64, 1e-12."""
    tuning = ExplicitTuning(model, sim.program)
    ids = torch.arange(7)
    seen: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda _, given, out: seen.append(given[0].shape[1]))
    whole, part = tuning.logits(ids, 7), tuning.logits(ids, 3)
    hook.remove()
    assert seen == [7, 3]
    torch.testing.assert_close(part, whole[-3:], rtol=0, atol=1e-12)


def test_an_interrupted_task_goes_on(
    sim: tintc.TintForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was kept is not scored again, and a line that was cut off is."""
    setting = Setting(TASK, (), "single", "full", calibrated=False)
    scored: list[str] = []
    scores = Simulated.scores
    monkeypatch.setattr(Simulated, "scores", lambda self, *more: scored.append(self.name) or scores(self, *more))

    def run() -> list[list[list[float]]]:
        records = Records(tmp_path / "kept")
        return answers(Simulated("tint", sim), sim.tokenizer, 99, setting, ASKED, RATES, records, ALONE)

    whole = run()
    first, second = (tmp_path / "kept").read_bytes().splitlines(keepends=True)
    (tmp_path / "kept").write_bytes(first + second[:20])
    assert run() == whole == run()
    assert len(scored) == 3
