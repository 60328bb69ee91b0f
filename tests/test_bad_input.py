"""A user's mistakes: one sentence on standard error, exit code 2, and nothing written that was not there before."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from command import (
    STORY,
    Command,
    change_config,
    change_weights,
    contents,
    finished,
    model_folder,
    process,
)

import tintc


@pytest.fixture
def model(one_layer: Path, tmp_path: Path) -> Path:
    """A model that the test may damage."""
    return Path(shutil.copytree(one_layer, tmp_path / "model"))


@pytest.fixture
def compiled(one_layer_sim: Path, tmp_path: Path) -> Path:
    """A compiled simulator that the test may damage."""
    return Path(shutil.copytree(one_layer_sim, tmp_path / "compiled"))


def refuses(command: Command, *arguments: object, says: str) -> None:
    """Exit 2, nothing on standard output, one sentence (or a list) on standard error."""
    found = command(*arguments)
    assert found.code == 2, found
    assert found.out == ""
    assert found.err.startswith("error: ") and says in found.err, found.err
    assert "Traceback" not in found.err and len(found.err.splitlines()) == 1


BROKEN_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no such model": (lambda folder: shutil.rmtree(folder), "no model"),
    "broken config": (lambda folder: (folder / "config.json").write_text('{"model_type": '), "config.json"),
    "unknown type": (lambda folder: change_config(folder, model_type="perceptron"), "perceptron"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
    "weights missing": (
        lambda folder: change_weights(folder, lambda w: [w.pop(k) for k in list(w) if "h.0.mlp" in k]),
        "lacks weights",
    ),
    "other shapes": (lambda folder: change_config(folder, n_embd=36, n_head=4), "other shapes"),
    "NaN": (
        lambda folder: change_weights(folder, lambda w: w["transformer.h.0.ln_1.bias"].fill_(torch.nan)),
        "NaN",
    ),
    "truncated weights": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000]),
        "cannot be loaded",
    ),
}


@pytest.mark.parametrize("case", BROKEN_MODELS)
def test_broken_models(command: Command, model: Path, tmp_path: Path, case: str) -> None:
    damage, says = BROKEN_MODELS[case]
    damage(model)
    refuses(command, "compile", model, "-o", tmp_path / "sim", "--json", says=says)
    if case not in ("no weights", "NaN"):  # a look at a model does not need its numbers
        refuses(command, "inspect", model, "--params", "--json", says=says)
    assert {path.name for path in tmp_path.iterdir()} <= {"model"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--update-layers", 3), "3 layers"),
        (("--update-layers", 0), "0 layers"),
        (("--steps", 0), "steps"),
        (("--lr", "nan"), "learning rate"),
        (("--descend", "values,heads"), "The parameter group 'heads' is unknown"),
        (("--lr", "-1"), "learning rate"),
        (("--fd-step", "0"), "finite-difference step"),
        (("--stack", 1, "--shards", 16), "not a feasible layout"),
        (("--max-length", 64), "between 2 and 32"),
        (("--max-length", 1), "between 2 and 32"),
        (("--max-shard-size", "a lot"), "5GB"),
    ],
)
def test_options_out_of_range(
    command: Command, model: Path, tmp_path: Path, options: tuple[object, ...], says: str
) -> None:
    refuses(command, "compile", model, "-o", tmp_path / "sim", *options, says=says)
    assert not (tmp_path / "sim").exists()


@pytest.mark.parametrize("options", [("--loss", "l1"), ("--dtype", "int8"), ("--steps", "many"), ("--no-such-option",)])
def test_usage_errors(command: Command, model: Path, tmp_path: Path, options: tuple[object, ...]) -> None:
    found = command("compile", model, "-o", tmp_path / "sim", *options)
    assert found.code == 2 and found.out == "" and not (tmp_path / "sim").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--text", ""), "empty"),
        (("--text", "cat"), "only 1 token"),
        (("--text", "the cat sat on", "--block-size", 8), "less than one block"),
        (("--text", STORY, "--block-size", 33), "at most 32"),
        (("--text", STORY, "--block-size", 3), "at least 4"),
        (("--text", STORY, "--train-fraction", 0), "between 0 and 1"),
        (("--text", STORY, "--train-fraction", 1), "between 0 and 1"),
        (("--text", STORY, "--train-fraction", "nan"), "between 0 and 1"),
        (("--text", STORY, "--train-fraction", 0.03), "two are needed"),
        (("--text", STORY, "--max-blocks", 0), "at least 1"),
        (("--text", STORY, "--lr", "-1"), "learning rate"),
        (("--text", STORY, "--lr", "1e30"), "too large"),
        (("--text", STORY, "--lr", "1e30,1e35"), "too large"),
        (("--text", STORY, "--lr", "1e-4,"), "several separated by commas"),
        (("--text", STORY, "--lr", "small"), "several separated by commas"),
        (("--text", STORY, "--lr", "1e-4,inf"), "finite"),
        (("--text", "the cat sat", "--block-size", 8, "--partial"), "only 3 tokens"),
        ((), "--text or with --file"),
        (("--text", STORY, "--file", "story.txt"), "--text or with --file"),
        (("--file", "no/such/file"), "No such file"),
        (("--file", "."), "Is a directory"),
    ],
)
def test_texts_that_do_not_fit(command: Command, compiled: Path, options: tuple[object, ...], says: str) -> None:
    refuses(command, "run", compiled, *options, "--json", says=says)


def test_text_that_is_not_utf8(command: Command, compiled: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("the cat sat on the café mat".encode("latin-1"))
    refuses(command, "run", compiled, "--file", tmp_path / "latin.txt", says="not UTF-8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(command: Command, compiled: Path) -> None:
    refuses(command, "run", compiled, "--text", STORY, "--device", "cuda", says="No CUDA GPU")


def test_token_ids_out_of_range(command: Command, tmp_path: Path) -> None:
    """A tokenizer with more entries than the model has rows."""
    small = model_folder(tmp_path / "model", tiny_models.gpt2(n_layers=1, vocab=8))
    assert command("compile", small, "-o", tmp_path / "sim").code == 0
    refuses(command, "run", tmp_path / "sim", "--text", STORY, says="out of range")


BROKEN_ARTEFACTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no such folder": (lambda folder: shutil.rmtree(folder), "There is no folder"),
    "no program": (lambda folder: (folder / "program.tint").unlink(), "program.tint"),
    "program damaged": (
        lambda folder: (folder / "program.tint").write_text((folder / "program.tint").read_text()[:900]),
        "Program text, line",
    ),
    "config damaged": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "config of another type": (lambda folder: change_config(folder, model_type="gpt2"), "not a compiled simulator"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "Compile the model again"),
    "weights truncated": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:9000]),
        "ompile the model again",
    ),
    "weights missing": (lambda folder: change_weights(folder, lambda w: [w.popitem()]), "does not fit its program"),
    "weights unknown": (
        lambda folder: change_weights(folder, lambda w: w.update(more=torch.zeros(3))),
        "does not fit its program",
    ),
}


@pytest.mark.parametrize("case", BROKEN_ARTEFACTS)
def test_broken_artefacts(command: Command, compiled: Path, case: str) -> None:
    damage, says = BROKEN_ARTEFACTS[case]
    damage(compiled)
    refuses(command, "run", compiled, "--text", STORY, "--json", says=says)


def test_output_exists(command: Command, model: Path, compiled: Path) -> None:
    before = contents(compiled)
    refuses(command, "compile", model, "-o", compiled, says="--force")
    assert contents(compiled) == before
    assert command("compile", model, "-o", compiled, "--lr", "0.5", "--force").code == 0
    assert contents(compiled) != before and tintc.load(compiled).config.inner_lr == 0.5
    assert {path.name for path in compiled.parent.iterdir()} == {"compiled", "model"}


def test_only_simulators_are_replaced(command: Command, model: Path, tmp_path: Path) -> None:
    """--force deletes no folder or file that tintc did not write."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("ten years of work")
    refuses(command, "compile", model, "-o", tmp_path / "thesis", "--force", says="not a compiled simulator")
    refuses(command, "compile", model, "-o", model, "--force", says="not a compiled simulator")
    refuses(command, "compile", model, "-o", model / "config.json", "--force", says="is a file")
    refuses(command, "compile", model, "-o", model / "config.json" / "sim", says="Cannot write")
    assert contents(tmp_path / "thesis") == {"chapter.txt": b"ten years of work"}


@pytest.mark.parametrize("limit", [20_000, pytest.param(1_000, marks=pytest.mark.slow)])
def test_disk_full(model: Path, compiled: Path, limit: int) -> None:
    """The system refuses files of more than `limit` bytes: at 20 kB the weights fail, at 1 kB smaller files too."""
    before, beside = contents(compiled), {path.name for path in compiled.parent.iterdir()}
    # Python would take the first bytes of its byte code for all of it, and others would import that.
    full = "import resource, sys; sys.dont_write_bytecode = True\n"
    full += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit},) * 2)"
    found = finished(process("compile", model, "-o", compiled, "--force", "--json", before=full))
    assert found.code == 2 and found.out == "", found
    assert found.err.startswith("error: Could not write") and len(found.err.splitlines()) == 1
    assert contents(compiled) == before and {path.name for path in compiled.parent.iterdir()} == beside


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_interrupted(model: Path, compiled: Path, sent: signal.Signals, code: int) -> None:
    """Interrupted in the middle of writing: what was there stays, and nothing lies beside it.

    The tests themselves ignore SIGINT meanwhile, as under a shell's background job.
    """
    before, beside = contents(compiled), {path.name for path in compiled.parent.iterdir()}
    stop_in_writing = (
        "import time, tintc\n"
        "from tintc.runtime.artefact import streaming as stream\n"
        "real = stream.write_files\n"
        "def slow(*a, **k):\n"
        "    real(*a, **k)\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(200)\n"
        "stream.write_files = slow\n"
    )
    ours = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        running = process("compile", model, "-o", compiled, "--force", before=stop_in_writing)
    finally:
        signal.signal(signal.SIGINT, ours)
    assert running.stdout.readline() == "writing\n"
    assert {path.name for path in compiled.parent.iterdir()} > beside, "it writes to a folder beside"
    time.sleep(0.1)
    running.send(sent)
    found = finished(running)
    assert found.code == code and "Traceback" not in found.err, found
    assert contents(compiled) == before and {path.name for path in compiled.parent.iterdir()} == beside
