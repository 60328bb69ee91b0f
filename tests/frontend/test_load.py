"""What can be wrong with a model's files, and the sentence each gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import llama
from transformers import AutoModel

import tintc
from tintc.errors import ModelError, OptionError
from tintc.frontend.source.load import load_auxiliary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    llama(n_layers=1).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def edit_weights(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    assert tensors.pop(name) is not None
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def refused(path: str | Path) -> str:
    with pytest.raises(ModelError) as error:
        load_auxiliary(path)
    return str(error.value)


def test_a_good_folder(folder: Path) -> None:
    source = load_auxiliary(folder)
    assert source.provenance["source"] == "tiny" and source.provenance["model_type"] == "llama"
    assert str(folder.parent) not in json.dumps(source.provenance)
    assert source.tokenizer is None and source.max_length == 32 and source.dtype == torch.float32
    assert (source.bos_token_id, source.eos_token_id, source.pad_token_id) == (1, 2, 0)


def test_a_model_in_memory() -> None:
    source = load_auxiliary(llama(n_layers=1), max_length=7)
    assert source.max_length == 7 and source.provenance["source"] == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("stored", "compiled"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_a_simulator_is_at_least_float32(tmp_path: Path, stored: torch.dtype, compiled: torch.dtype) -> None:
    """Unless told otherwise; the model is read as it is stored."""
    model: Any = llama(n_layers=1)
    model.to(stored).save_pretrained(tmp_path)
    source = load_auxiliary(tmp_path)
    assert (source.dtype, source.model.dtype) == (compiled, stored)


def test_no_such_place(tmp_path: Path) -> None:
    assert "There is no folder" in refused(tmp_path / "nowhere")
    assert "no GGUF file" in refused(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    assert "not a GGUF file" in refused(tmp_path / "notes.txt")


def test_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{ this is not")
    assert "broken config.json" in refused(folder)


def test_unknown_model_type(folder: Path) -> None:
    edit_config(folder, model_type="nonesuch")
    assert "nonesuch" in refused(folder)


def test_not_a_causal_language_model(folder: Path) -> None:
    edit_config(folder, model_type="vit")
    assert "not a causal language model" in refused(folder)


def test_a_simulator_is_no_model_to_compile() -> None:
    with pytest.raises(ModelError, match="is a simulator already"):
        load_auxiliary(tintc.compile(llama(n_layers=1)))


def test_a_model_without_a_head() -> None:
    with pytest.raises(ModelError, match="not a causal language model"):
        load_auxiliary(AutoModel.from_config(llama(n_layers=1).config))


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no weights" in refused(folder)


def test_truncated_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "cannot be loaded" in refused(folder)


def test_missing_weights(folder: Path) -> None:
    edit_weights(folder, "model.layers.0.mlp.down_proj.weight", None)
    assert "lacks weights" in refused(folder) and "down_proj" in refused(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    edit_config(folder, intermediate_size=40)
    message = refused(folder)
    assert "other shapes" in message and "(32, 45), expected (32, 40)" in message


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder: Path, bad: float) -> None:
    weight = torch.ones(32)
    weight[3] = bad
    edit_weights(folder, "model.norm.weight", weight)
    assert "model.norm.weight" in refused(folder)


def test_weights_in_other_files_are_named(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "consolidated.pth")
    (folder / "model.safetensors").unlink()
    message = refused(folder)
    assert "has its weights in consolidated.pth" in message and "save_pretrained" in message


@pytest.mark.parametrize("length", [0, 1, 33])
def test_lengths_the_model_does_not_have(folder: Path, length: int) -> None:
    with pytest.raises(OptionError, match="between 2 and 32"):
        load_auxiliary(folder, max_length=length)
