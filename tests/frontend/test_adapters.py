"""Adapters of peft: merged into their base, or kept as layers that descend. fp64 comparisons with peft's own model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Command, model_folder
from tiny_models import adapted, gpt2, llama, relative, token_ids

import tintc
from tintc.errors import ModelError, OptionError
from tintc.frontend.source import adapters
from tintc.frontend.source.load import load_auxiliary
from tintc.frontend.source.provenance import ADAPTERS
from tintc.reference import Approximations, tune

IDS = token_ids(1, 14)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter of a tiny Llama with a tokenizer."""
    base = llama(n_layers=1)
    model_folder(tmp_path / "base", base)
    base.config.name_or_path = str(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    adapted(base, ["q_proj", "v_proj", "down_proj"]).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_a_folder_is_merged_into_its_base(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    source = load_auxiliary(folder)
    theirs = peft.PeftModel.from_pretrained(load_auxiliary(folder.parent / "base").model, folder)
    assert relative(logits(source.model), logits(theirs)) < 1e-5
    assert relative(logits(source.model), logits(load_auxiliary(folder.parent / "base").model)) > 1e-3
    assert source.provenance[ADAPTERS] == "merged" and source.provenance["source"] == "adapter"
    assert source.tokenizer is not None


def test_a_base_in_a_short_type_does_not_round_what_is_merged(folder: Path) -> None:
    base: Any = load_auxiliary(folder.parent / "base").model
    base.bfloat16().save_pretrained(folder.parent / "base")
    assert load_auxiliary(folder).model.dtype == torch.float32


def test_a_model_with_adapters_is_merged_and_left_as_it_was() -> None:
    model = adapted(llama(n_layers=1), ["v_proj", "up_proj"])
    before = logits(model)
    source = load_auxiliary(model)
    assert relative(logits(source.model), before) < 1e-5
    assert torch.equal(logits(model), before) and any("lora_A" in name for name, _ in model.named_parameters())


TARGETS: list[tuple[Callable[..., Any], list[str]]] = [
    (llama, ["q_proj", "v_proj", "o_proj", "gate_proj"]),
    (gpt2, ["c_attn", "c_proj"]),
]


@pytest.mark.parametrize(("make", "targets"), TARGETS)
def test_kept_adapters_descend_as_explicit_tuning_does(make: Callable[..., Any], targets: list[str]) -> None:
    model = adapted(make(n_layers=1), targets).double()
    sim = tintc.compile(model, keep_adapters=True, descend="lora", inner_lr=0.05)
    with torch.no_grad():
        out = sim(IDS, return_before=True)
    tuned = tune(
        model.get_base_model(),
        IDS,
        inner_lr=0.05,
        approximations=replace(Approximations.of(), groups=frozenset({"lora"})),
    )
    update = float((tuned.logits - tuned.logits_before).norm())
    assert float((out.logits - tuned.logits).norm()) < 1e-9 * update
    assert update > 0.01 * float(tuned.logits.norm())
    assert all("lora_" in name for name in tuned.gradients[0])
    assert relative(out.logits_before, logits(model)) < 1e-6  # Llama's norms drop to fp32
    assert sim.config.provenance[ADAPTERS] == "kept"


def test_kept_adapters_on_the_command_line(folder: Path, command: Command, tmp_path: Path) -> None:
    done = command("compile", folder, "-o", tmp_path / "sim", "--keep-adapters", "--descend", "lora", "--lr", 0.02)
    assert done.code == 0, done.err
    verified = command("verify", tmp_path / "sim", folder, "--length", 12, "--json")
    assert verified.code == 0 and all("lora_" in name for name in verified.json["parameters"])


def test_the_group_of_adapters_needs_them(tmp_path: Path) -> None:
    for options in ({}, {"keep_adapters": True}):
        with pytest.raises(OptionError, match="group lora"):
            tintc.compile(llama(n_layers=1), descend="values,lora", **options)


def test_adapters_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_folder(tmp_path / "base", llama(n_layers=1))
    entries: dict[str, Any] = {"peft_type": "LORA"}
    folder = tmp_path / "adapter"
    folder.mkdir()

    def message() -> str:
        (folder / "adapter_config.json").write_text(json.dumps(entries))
        with pytest.raises(ModelError) as error:
            load_auxiliary(folder)
        (line,) = str(error.value).splitlines()
        return line

    assert "does not say which model it is for" in message()
    entries["base_model_name_or_path"] = str(tmp_path / "nowhere")
    assert "which cannot be had (There is no folder" in message()
    entries["base_model_name_or_path"] = str(folder)
    assert "which is an adapter too" in message()
    entries["base_model_name_or_path"] = str(tmp_path / "base")
    monkeypatch.setattr(adapters, "find_spec", lambda _: None)
    assert "needs the package peft: pip install peft" in message()


def test_an_adapter_without_its_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="adapter adapter cannot be put on its base"):
        load_auxiliary(folder)


def test_prompts_are_no_change_of_weights() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(llama(n_layers=1), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    for keep in (False, True):
        with pytest.raises(ModelError, match="of the kind PROMPT_TUNING, which changes what the model reads"):
            load_auxiliary(model, keep_adapters=keep)
