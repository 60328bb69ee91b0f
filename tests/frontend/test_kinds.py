"""Whatever a user hands over in place of a decoder either works or is refused in one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import change_config, model_folder
from tiny_models import llama
from torch import nn
from transformers import AutoModelForImageTextToText, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import tintc
from tintc.errors import ModelError
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.source.load import load_auxiliary
from tintc.frontend.source.provenance import TOKENIZER_PROBLEM
from tools.sweep.tiny import _merged, _small, tiny_model


class Holder(nn.Module):
    """A model as people keep one: in a module of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"decoder": tiny()})


def tiny() -> Any:
    return llama(n_layers=1)


def shared_out(model: Any) -> nn.Module:
    """As `DistributedDataParallel` wraps a model, without other processes."""
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = model
    return wrapped


def images(kind: str = "qwen2_5_vl") -> Any:
    """A tiny model of images and text."""
    configuration = CONFIG_MAPPING[kind]
    sizes = _merged(_small(configuration()), {"text_config": {"num_hidden_layers": 1}})
    return AutoModelForImageTextToText.from_config(configuration(**sizes))


def packed() -> nn.Module:
    """With a layer as GPTQ and AWQ write them."""
    model = tiny()
    model.model.layers[0].mlp.up_proj.register_buffer("qweight", torch.zeros(4, 4, dtype=torch.int32))
    return model


def bytes_for_weights() -> nn.Module:
    """With weights as bitsandbytes keeps them."""
    model = tiny()
    weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    model.model.layers[0].mlp.up_proj.weight = weight
    return model


def adapted() -> nn.Module:
    """With a module of peft's in a layer, whose class is all that is looked at."""
    model = tiny()
    layer = type("Linear", (nn.Identity,), {"__module__": "peft.tuners.lora.layer"})
    model.model.layers[0].mlp.up_proj = layer()
    return model


WORK: dict[str, Callable[[], Any]] = {
    "DataParallel": lambda: nn.DataParallel(tiny()),
    "DistributedDataParallel": lambda: shared_out(tiny()),
    "torch.compile": lambda: torch.compile(tiny()),
    "both": lambda: shared_out(torch.compile(tiny())),
}


@pytest.mark.parametrize("kind", WORK)
def test_wrappers_are_taken_off(kind: str) -> None:
    source = load_auxiliary(WORK[kind]())
    assert type(source.model).__name__ == source.provenance["source"] == "LlamaForCausalLM"


@pytest.mark.usefixtures("traced_anew")
@pytest.mark.parametrize("kind", ["qwen3_vl", "llava"])
def test_models_of_images_are_captured_as_objects(kind: str) -> None:
    """Without a cache, whatever part of their configuration asks for one; it is left as it was."""
    model = images(kind)
    before = model.config.get_text_config().use_cache
    capture(load_auxiliary(model).model)
    assert before and model.config.get_text_config().use_cache == before


OBJECTS: dict[str, tuple[Callable[[], Any], str]] = {
    "no weights": (nn.Identity, "Identity has no weights; pass a module that makes logits"),
    "no ids": (lambda: shared_out(nn.Linear(3, 3)), r"Linear cannot be run on token ids \[2, 3\]"),
    "module that holds one": (Holder, r"LlamaForCausalLM, in its attribute parts\.decoder; pass that"),
    "configuration": (lambda: tiny().config, "LlamaConfig is a configuration, which has no weights"),
    "state dict": (lambda: tiny().state_dict(), "is no model; pass a transformers model, a folder"),
    "nothing": (lambda: None, "A NoneType is no model"),
    "torch's int8": (
        lambda: torch.ao.quantization.quantize_dynamic(tiny(), {nn.Linear}, dtype=torch.qint8),
        r"quantised; .* call model.dequantize\(\)",
    ),
    "packed weights": (packed, r"model.dequantize\(\)"),
    "bytes": (bytes_for_weights, r"model.dequantize\(\)"),
    "adapters": (adapted, r"merge_and_unload\(\)"),
    "no head": (lambda: tiny().model, "no language-model head. Pass LlamaForCausalLM"),
    "another head": (
        lambda: AutoModelForSequenceClassification.from_config(tiny().config),
        "no language-model head. Pass LlamaForCausalLM",
    ),
    "part of a model": (lambda: images().model.language_model, "pass the whole model"),
    "encoder": (lambda: tiny_model("bert", is_decoder=False).bert, "not a causal language model"),
    "encoder and decoder": (lambda: encoder_decoder(), "reads its prompt with an encoder"),
}


def encoder_decoder() -> Any:
    model = tiny()
    model.config.is_encoder_decoder = True
    return model


@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_that_are_no_decoder(kind: str) -> None:
    make, message = OBJECTS[kind]
    with pytest.raises(ModelError, match=message) as refused:
        tintc.compile(make())
    assert len(str(refused.value).splitlines()) == 1


def test_a_simulator_is_named_before_it_is_loaded(tmp_path: Path) -> None:
    tintc.compile(tiny(), output=tmp_path / "sim")
    (tmp_path / "sim" / "program.tint").unlink()
    for values in (True, False):
        with pytest.raises(ModelError, match="is a simulator already"):
            load_auxiliary(tmp_path / "sim", values=values)


FOLDERS: dict[str, tuple[dict[str, Any], str]] = {
    "code": (
        {"model_type": "mine", "auto_map": {"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}},
        "code of its own .* pass --trust-remote-code",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model") / "tiny", tiny(), with_tokenizer=False)


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_that_cannot_be_read(folder: Path, tmp_path: Path, kind: str) -> None:
    changes, message = FOLDERS[kind]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change_config(tmp_path, **changes)
    with pytest.raises(ModelError, match=message) as refused:
        load_auxiliary(tmp_path)
    assert len(str(refused.value).splitlines()) == 1


def test_a_folder_of_a_model_without_its_head(tmp_path: Path) -> None:
    """As AutoModel saves one; a head that is tied to the embeddings is not missing."""
    model = tiny()
    model.model.save_pretrained(tmp_path / "part")
    with pytest.raises(ModelError, match=r"language-model head, lm_head\.weight, .* save a LlamaForCausalLM"):
        load_auxiliary(tmp_path / "part")
    tied = llama(n_layers=1, tie_word_embeddings=True)
    tied.model.save_pretrained(tmp_path / "tied")
    loaded: Any = load_auxiliary(tmp_path / "tied").model
    assert loaded.get_output_embeddings() is not None


def test_a_tokenizer_that_cannot_be_read_is_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When compiling, and in the simulator's provenance for whoever asks it for text."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{ this is not")
    sim = tintc.compile(tmp_path)
    problem = sim.config.provenance[TOKENIZER_PROBLEM]
    assert sim.tokenizer is None and problem and problem in caplog.text
    assert TOKENIZER_PROBLEM not in load_auxiliary(folder).provenance
