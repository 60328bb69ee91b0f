"""`tintc eval`: on datasets by their ids, in several processes, and as a picture; numbers are equal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from command import ROOT, WORDS, Command, free_port, joins

from tintc.cli.eval_icl import evaluate_classification
from tintc.cli.eval_ppl import evaluate_perplexity
from tintc.errors import InputError
from tintc.evaluation.experiments.tasks import Example, Task, examples_of, known_tasks

TEXT = " ".join(WORDS * 3)
PPL = ("--block-size", 9, "--train-fraction", 0.5)
ICL = ("--examples", 3, "--seeds", 1, "--shots", "0,2", "--columns", "before,tint")
LABELS = (" happy", " sad")
Folder = Callable[..., Path]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Make a dataset of splits of rows, as a folder; `datasets` reads it whatever its id, and keeps nothing."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    load = datasets.load_dataset

    def make(name: str, **splits: list[dict[str, Any]]) -> Path:
        folder = tmp_path / name.replace("/", "-")
        folder.mkdir()
        for split, rows in splits.items():
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        monkeypatch.setattr(
            datasets,
            "load_dataset",
            lambda asked, *more, **options: load(str(folder) if asked == name else asked, **options),
        )
        return folder

    return make


def rows_of(text: str) -> list[dict[str, Any]]:
    """Rows of four words and, as datasets have them, empty ones."""
    words = text.split()
    rows = [" ".join(words[at : at + 4]) + "\n" for at in range(0, len(words), 4)]
    return [{"text": row} for one in rows for row in (one, "")]


def test_a_dataset_by_its_id(
    command: Command, one_layer_sim: Path, hub: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the file with the same rows, and rates are chosen on its validation split; a folder is a dataset too."""
    other = " ".join(reversed(TEXT.split()))
    folder = hub("someone/words", test=rows_of(TEXT), validation=rows_of(other))
    for name, text in (("words.test.txt", TEXT), ("words.valid.txt", other)):
        (tmp_path / name).write_text("".join(row["text"] for row in rows_of(text)))
    run = ("eval", "ppl", one_layer_sim, *PPL, "--rates", "0.01,0.3", "--json", "--dataset")
    found = [command(*run, dataset) for dataset in (tmp_path / "words.test.txt", "someone/words", folder)]
    assert [one.code for one in found] == [0, 0, 0], found[-1].err
    assert found[0].json["rows"] == found[1].json["rows"] == found[2].json["rows"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    missing = command(*run, "someone/else")
    assert missing.code == 2 and "The dataset someone/else could not be read" in missing.err


def test_a_task_by_its_id(hub: Folder) -> None:
    """The split with known labels is the test, and withheld labels are refused."""
    rows = [{"sentence": word, "label": place % 2} for place, word in enumerate(WORDS[:4])]
    withheld = [row | {"label": -1} for row in rows]
    task = Task("sst2", "{text}", LABELS, "sst2", "someone/sst2", "sentence", "validation")
    hub("someone/sst2", train=rows, validation=rows[:2], test=withheld)
    assert examples_of(task, "test", None) == [Example(word, place) for place, word in enumerate(WORDS[:2])]
    assert len(examples_of(task, "train", None)) == 4
    with pytest.raises(InputError, match="has labels besides 0 to 1; those of tests are often withheld"):
        examples_of(Task("sst2", "{text}", LABELS, "sst2", "someone/sst2", "sentence"), "test", None)
    assert known_tasks()["sst2"].hub_test == "validation"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text and a task of words that the tokenizer of the tests knows."""
    rows = [{"text": word, "label": place % 2} for place, word in enumerate(WORDS * 2)]
    for split in ("train", "test"):
        path = tmp_path / "classification" / "sst2" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "words.txt").write_text("".join(row["text"] for row in rows_of(TEXT)))
    task = Task("sst2", "the {text} was", LABELS, "sst2", "", "")
    monkeypatch.setattr("tintc.evaluation.experiments.tasks.known_tasks", lambda: {"sst2": task})
    return tmp_path


def options_of(command: Command, monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> tuple[Any, ...]:
    """What the command hands to the function that does it."""
    handed: list[tuple[Any, ...]] = []
    with monkeypatch.context() as patch:
        patch.setattr(f"tintc.cli.eval_{arguments[0]}.{name}", lambda *values: handed.append(values))
        assert command("eval", *arguments).code == 0
    return handed[0]


def _one_of_two(index: int, run: Callable[..., None], arguments: tuple[Any, ...], out: str, port: int) -> None:
    """What a launcher starts; standard output goes to a file of the process's own."""
    joins(index, port)
    with open(f"{out}/{index}", "w") as sys.stdout:
        run(*arguments)


@pytest.mark.parametrize("run", [evaluate_perplexity, evaluate_classification], ids=["ppl", "icl"])
def test_two_processes(
    command: Command,
    llama_sim: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., None],
) -> None:
    """Blocks, or examples, shared by two: the numbers of one, printed by the first."""
    given = ("icl", llama_sim, *ICL, "--validation-examples", 3, "--data", data, "--rates", "0.01,0.3", "--json")
    if run is evaluate_perplexity:
        file = ("--dataset", data / "words.txt", "--columns", "before,tint,stream")
        given = ("ppl", llama_sim, *PPL, *file, "--rates", "0.01,0.3", "--json")
    alone = command("eval", *given)
    assert alone.code == 0, alone.err
    arguments = (run, options_of(command, monkeypatch, run.__name__, *given), str(tmp_path), free_port())
    torch.multiprocessing.start_processes(_one_of_two, arguments, nprocs=2, start_method="fork")  # pyright: ignore
    assert json.loads((tmp_path / "0").read_text()) == alone.json
    assert (tmp_path / "1").read_text() == ""


@pytest.mark.slow
def test_accelerate_launch(one_layer_sim: Path, data: Path) -> None:
    """The launcher itself. On a machine without GPUs its --multi_gpu is what starts several processes."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--multi_gpu"]
    places = ["--main_process_port", str(free_port())]
    run = ["-m", "tintc_cli", "eval", "ppl", str(one_layer_sim), *map(str, PPL), "--json"]
    run += ["--dataset", str(data / "words.txt"), "--rates", "0.01,0.3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    shown = [
        subprocess.run(start, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
        for start in ([sys.executable, *run], [*launch, *places, *run])
    ]
    alone, together = (json.loads(one.stdout) for one in shown)
    assert alone == together


def test_pictures(command: Command, llama_sim: Path, data: Path, tmp_path: Path) -> None:
    file = ("--dataset", data / "words.txt", "--max-blocks", 2)
    runs = {
        "ppl": ("ppl", llama_sim, *PPL, *file),
        "icl": ("icl", llama_sim, "--examples", 2, "--validation-examples", 2, "--shots", 0, "--data", data),
    }
    for name, run in runs.items():
        shown = command("eval", *run, "--png", tmp_path / f"{name}.png")
        assert shown.code == 0, shown.err
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        refused = command("eval", *run, "--png", tmp_path / "nowhere" / "x.png")
        assert refused.code == 2 and "must be a file in a folder that exists" in refused.err
