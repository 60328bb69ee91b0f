"""Damaged folders, through every door: `tintc.load`, transformers' Auto class, the command."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import STORY, Command, change_config, change_weights
from transformers import AutoConfig, AutoModelForCausalLM

import tintc
from tintc.errors import ArtefactError, TintcError
from tintc.runtime.artefact.config import FORMAT_VERSION


@pytest.fixture
def folder(llama_sim: Path, tmp_path: Path) -> Path:
    """A folder that the test may change."""
    return Path(shutil.copytree(llama_sim, tmp_path / "sim"))


def change_program(folder: Path, old: str, new: str) -> None:
    text = (folder / "program.tint").read_text()
    assert old in text
    (folder / "program.tint").write_text(text.replace(old, new))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "tensors missing": (lambda folder: change_weights(folder, lambda w: w.popitem()), "it lacks 1 tensor ("),
    "tensors unknown": (
        lambda folder: change_weights(folder, lambda w: w.update(more=torch.zeros(3))),
        "has 1 tensor it",
    ),
    "tensors of other shapes": (
        lambda folder: change_weights(
            folder, lambda w: w.update({"tables.model.embed_tokens.weight": torch.zeros(3, 8)})
        ),
        "it has 1 tensor of another shape (tables.model.embed_tokens.weight)",
    ),
    "newer": (lambda folder: change_config(folder, format_version=FORMAT_VERSION + 1), "by a newer tintc (format 3;"),
    "older": (
        lambda folder: change_config(folder, format_version=1),
        "by an earlier tintc (format 1; this one reads 2); compile the model again.",
    ),
    "other steps": (lambda folder: change_config(folder, n_steps=7), "says n_steps 7 and its program 1; put 1 back"),
    "another rate": (lambda folder: change_config(folder, inner_lr=0.5), "was changed in one of inner_lr, "),
    "steps once calibrated": (
        lambda folder: change_config(folder, difference="calibrated"),
        "was compiled with difference 'calibrated', which this version of tintc does not have; compile the model again",
    ),
    "steps once calibrated, in the program": (
        lambda folder: change_program(folder, 'scheme="token"', 'scheme="calibrated"'),
        "unknown finite-difference scheme 'calibrated'. Undo what was edited, or compile the model again.",
    ),
    "gates once short of 1": (
        lambda folder: change_config(folder, gate_scale=10.0),
        "was compiled with gate_scale 10.0, which this version of tintc does not have; compile the model again",
    ),
    "gates once short of 1, in the program": (
        lambda folder: change_program(folder, "semantics=", "gate_scale=10.0, semantics="),
        "has the attribute 'gate_scale', which this version of tintc does not have; compile the model again",
    ),
    "tensors once shared by step": (
        lambda folder: change_config(folder, reuse="step"),
        "was compiled with reuse 'step', which this version of tintc does not have; compile the model again",
    ),
    "tensors once shared by step, in the program": (
        lambda folder: change_program(folder, "semantics=", 'reuse="step", semantics='),
        "'reuse' is 'step'; it must be one of none, layer. Compile the model again.",
    ),
    "program cut": (
        lambda folder: (folder / "program.tint").write_text((folder / "program.tint").read_text()[:900]),
        "sim/program.tint is damaged. Program text, line ",
    ),
    "no program": (lambda folder: (folder / "program.tint").unlink(), "has no program.tint"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "Compile the model again"),
    "a weight NaN": (
        lambda folder: change_weights(
            folder, lambda w: w["prefixes.model.layers.0.mlp.up_proj.weight"].fill_(math.nan)
        ),
        "has NaN or infinite values in prefixes.model.layers.0.mlp.up_proj.weight. Compile the model again",
    ),
    "a number infinite": (
        lambda folder: change_weights(folder, lambda w: w["tables.model.embed_tokens.weight"][3].fill_(-math.inf)),
        "has NaN or infinite values in tables.model.embed_tokens.weight",
    ),
    "a rate NaN": (
        lambda folder: change_weights(
            folder, lambda w: [one.fill_(math.nan) for name, one in w.items() if name.startswith("rates.")]
        ),
        "has NaN or infinite values in rates.",
    ),
    "a structural tensor NaN": (
        lambda folder: change_weights(
            folder, lambda w: [one.fill_(math.nan) for name, one in w.items() if name.startswith("structure.")]
        ),
        "has NaN or infinite values in structure.",
    ),
    "weights cut": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:9000]),
        "ompile the model again",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders_through_every_door(
    command: Command, folder: Path, damage: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tintc.load`, transformers' Auto class and the command: one sentence each, of the same content, and no table of
    transformers' before it."""
    break_it, says = DAMAGES[damage]
    break_it(folder)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for read in (tintc.load, AutoModelForCausalLM.from_pretrained, tintc.TintForCausalLM.from_pretrained):
        with pytest.raises(TintcError) as refused:
            read(folder)
        assert says in str(refused.value) and len(str(refused.value).splitlines()) == 1
    assert "REPORT" not in caplog.text
    found = command("run", folder, "--text", STORY)
    assert found.code == 2 and found.err.startswith("error: ") and says in found.err
    assert len(found.err.splitlines()) == 1 and found.out == ""


def test_a_folder_of_another_type(command: Command, llama_sim: Path) -> None:
    """The Auto class loads what it is; everything of ours says what to do."""
    other = llama_sim.parent / "model"
    for read in (tintc.load, tintc.TintForCausalLM.from_pretrained):
        with pytest.raises(ArtefactError, match=r"type 'llama', not a compiled simulator; run 'tintc compile"):
            read(other)
    found = command("run", other, "--text", STORY)
    assert found.code == 2 and "not a compiled simulator" in found.err
    assert not isinstance(AutoModelForCausalLM.from_pretrained(other), tintc.TintForCausalLM)


def test_a_folder_of_an_earlier_version(folder: Path) -> None:
    """Options that have gone since, at what they are now: it loads, and what is saved of it does not name them."""
    change_config(folder, gate_scale=64.0)
    for read in (tintc.load, AutoModelForCausalLM.from_pretrained):
        sim = read(folder)
        assert "gate_scale" not in sim.config.to_dict()
        assert sim(torch.arange(1, 5)[None]).logits.isfinite().all()


def test_a_newer_configuration_alone(folder: Path) -> None:
    change_config(folder, format_version=FORMAT_VERSION + 1)
    with pytest.raises(ArtefactError, match=r"newer tintc .*; update tintc\.$"):
        AutoConfig.from_pretrained(folder)
