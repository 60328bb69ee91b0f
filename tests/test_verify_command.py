"""`tintc verify`: 0 for what the compiler makes, 1 for an artefact at fault, 2 for a user's mistake."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from command import STORY, Command, model_folder
from safetensors.torch import load_file, save_file

import tintc
from tintc.cli.verify import PROBE
from tintc.reference import tune

MODELS = {"gpt2": tiny_models.gpt2, "opt": partial(tiny_models.opt, 1), "llama": partial(tiny_models.llama, 1)}
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def models(two_layers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {name: model_folder(folder / name, make()) for name, make in MODELS.items() if name != "gpt2"}
    return {"gpt2": two_layers} | made


def compiled(model: Path, out: Path, **options: Any) -> Path:
    chosen: dict[str, Any] = {"inner_lr": 1e-2} | options
    tintc.compile(model, **chosen).save_pretrained(out)
    return out


@pytest.fixture
def stored(two_layers_sim: Path) -> Path:
    return two_layers_sim


@pytest.fixture
def damaged(stored: Path, tmp_path: Path) -> Path:
    """A simulator that the test may damage."""
    return Path(shutil.copytree(stored, tmp_path / "damaged"))


CASES: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"dtype": "float64", "n_steps": 2, "n_update_layers": 1}),
    ("opt", {"semantics": "paper-code", "n_steps": 2}),
    ("llama", {"loss": "quad", "fd_step": 1e-2}),
    ("llama", {"dtype": "bfloat16"}),
    ("opt", {"loss": "mse", "n_steps": 2, "descend": "values,norm-gain"}),
    (
        "llama",
        {"gradient": "full", "descend": "all", "difference": "central"},
    ),  # the others have key biases of gradient 0
    ("llama", {"optimizer": "normalized", "normalize": "all", "momentum": 0.9, "decay": 0.01, "n_steps": 2}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_what_the_compiler_makes_passes(
    command: Command, models: dict[str, Path], tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    """With margins: fp64 is 1000 times nearer than it must be, fp32 10 times, bf16 5 times.

    The paper's gradient is none of autograd's, the full one is.
    """
    out = compiled(models[name], tmp_path / "sim", **options)
    found = command("verify", out, models[name], "--json")
    assert found.code == 0, found
    assert found.json["ok"] and found.json["problems"] == [] and found.json["executor"] == "fused"
    margin = {"float64": 1e-3, "float32": 0.1, "bfloat16": 0.2}[found.json["dtype"]]
    for shown in found.json["parameters"].values():
        assert shown["error"] <= margin * shown["allowed"] and shown["cosine"] > 0.99
    assert found.json["gradient"]["error"] < 1e-4 or margin == 0.2
    assert (found.json["gradient"]["error_autograd"] > 1e-4) == (options.get("gradient") != "full")


def test_literal_execution_is_verified_too(command: Command, stored: Path, models: dict[str, Path]) -> None:
    fused, literal = (
        command("verify", stored, models["gpt2"], "--length", 8, "--executor", kind, "--json")
        for kind in ("fused", "literal")
    )
    assert (fused.code, literal.code, literal.json["executor"]) == (0, 0, "literal")
    for name, shown in literal.json["parameters"].items():
        assert shown["error"] < 1e-2 and shown["size"] == fused.json["parameters"][name]["size"]


def test_figures_are_those_of_the_reference(command: Command, stored: Path, models: dict[str, Path]) -> None:
    """The error after the update, worked out by hand from `tune` and the simulator."""
    found = command("verify", stored, models["gpt2"], "--length", 16, "--train-fraction", 0.7, "--json").json
    sim = tintc.load(stored)
    ids = torch.tensor(sim.tokenizer(PROBE)["input_ids"])[None, :16]
    mask = (torch.arange(16) < 11)[None]
    tuned = tune(tiny_models.gpt2(), ids, mask, inner_lr=1e-2)
    with torch.no_grad():
        after = sim(ids, train_mask=mask, return_before=True).logits.double()
    update = (tuned.logits - tuned.logits_before).norm()
    assert found["update_error"] == pytest.approx(float((after - tuned.logits).norm() / update), rel=1e-6)
    assert (found["tokens"], found["train_tokens"]) == (16, 11)


def test_table_for_people(command: Command, stored: Path, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text(STORY, encoding="utf-8")
    shown = command("verify", stored, models["gpt2"], "--text", tmp_path / "story.txt", "--all")
    assert shown.code == 0 and shown.err == ""
    assert "to autograd: cosine" in shown.out and "to exact" not in shown.out
    assert "does what its options say" in shown.out


def test_without_tokenizer_any_tokens_do(command: Command, tmp_path: Path) -> None:
    bare = model_folder(tmp_path / "bare", tiny_models.llama(n_layers=1), with_tokenizer=False)
    out = compiled(bare, tmp_path / "sim")
    assert command("verify", out, bare).code == 0
    (tmp_path / "story.txt").write_text(STORY, encoding="utf-8")
    refused = command("verify", out, bare, "--text", tmp_path / "story.txt")
    assert refused.code == 2 and "no tokenizer" in refused.err


def change_tensor(name: str, change: Callable[[torch.Tensor], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors[name])
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return apply


def say_another_loss(folder: Path) -> None:
    """In a folder that does not record which options its configuration had: others are refused when they are read."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"loss": "quad"}
    del config["digests"]["options"]
    path.write_text(json.dumps(config))


def drop_descent(folder: Path) -> None:
    """The program's last layer keeps its feed-forward bias and weight: its users read what was stored."""
    path = folder / "program.tint"
    name = "transformer.h.1.mlp.c_fc"
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith(f"%{name}.w1 ")]
    path.write_text("\n".join(lines).replace(f"%{name}.w1", f"%{name}.w0") + "\n")


WEIGHT = "prefixes.transformer.h.0.mlp.c_fc.weight"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "one entry of a prefix": (change_tensor(WEIGHT, lambda w: w[0, 0, 0].add_(1e-6)), "prefixes.transformer.h.0.mlp"),
    "a prefix": (change_tensor(WEIGHT, lambda w: w.mul_(1.5)), "the logits before"),
    "a structural tensor": (
        change_tensor("structure.linear_backward.w_q.0.weight", lambda w: w.mul_(-1)),
        "the gradients of",
    ),
    "a rate": (change_tensor("rates.transformer.h.0.mlp.c_fc", lambda w: w.mul_(3)), "the logits after"),
    "the loss it says": (say_another_loss, "the gradients of"),
    "a descent is missing": (drop_descent, "does not update"),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found(
    command: Command, damaged: Path, models: dict[str, Path], damage: Callable[[Path], None], says: str
) -> None:
    damage(damaged)
    found = command("verify", damaged, models["gpt2"], "--length", 16, "--json")
    assert found.code == 1, found
    assert not found.json["ok"] and any(says in problem for problem in found.json["problems"]), found.json["problems"]


def test_damage_is_told_to_people(command: Command, damaged: Path, models: dict[str, Path]) -> None:
    DAMAGES["a prefix"][0](damaged)
    shown = command("verify", damaged, models["gpt2"], "--length", 16)
    assert shown.code == 1 and "problem:" in shown.out and "does NOT do" in shown.out


def test_mistakes(
    command: Command, one_layer: Path, one_layer_sim: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    """Exit 2, one sentence on standard error, nothing on standard output."""
    stored, model = one_layer_sim, one_layer
    twin = model_folder(tmp_path / "twin", tiny_models.gpt2(n_layers=1, seed=1))
    text = tmp_path / "short.txt"
    text.write_text("the cat sat on a mat", encoding="utf-8")
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((stored, models["opt"]), "was not compiled from opt"),
        ((stored, twin), "was not compiled from twin"),
        ((tmp_path / "nowhere", model), "no folder"),
        ((model, model), "not a compiled simulator"),
        ((stored, tmp_path / "nowhere"), "no model"),
        ((stored, model, "--text", text), "6 tokens"),
        ((stored, model, "--text", tmp_path / "none.txt"), "Cannot read"),
        ((stored, model, "--length", 33), "at most 32"),
        ((stored, model, "--length", 3), "at least 4"),
        ((stored, model, "--train-fraction", 1.5), "train fraction"),
    ]
    for arguments, says in cases:
        found = command("verify", *arguments)
        assert (found.code, found.out) == (2, ""), (arguments, found)
        assert found.err.startswith("error: ") and says in found.err and len(found.err.splitlines()) == 1, found.err
