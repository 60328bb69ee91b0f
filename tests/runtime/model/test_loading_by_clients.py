"""How other libraries make a simulator: by keyword, from a configuration, from tensors, empty."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import accelerate
import pytest
import tiny_models
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tintc
from tintc.errors import ArtefactError, OptionError, TintcError
from tintc.runtime.model.causal_lm import TintForCausalLM

IDS = tiny_models.token_ids(2, 12, vocab=22)
SIZES = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 12, "use_cache": True}


@pytest.fixture
def folder(llama_sim: Path) -> Path:
    return llama_sim


def logits(sim: Any) -> torch.Tensor:
    with torch.no_grad():
        return sim(IDS).logits


@pytest.mark.parametrize("kind", [AutoConfig, tintc.TintConfig])
def test_a_configuration_knows_its_program_and_the_auxiliary_s_sizes(folder: Path, kind: Any) -> None:
    config = kind.from_pretrained(folder)
    assert config.program == (folder / "program.tint").read_text()
    assert config.auxiliary == (folder / "auxiliary.tint").read_text()
    assert {name: getattr(config, name) for name in SIZES} == SIZES
    assert not {"program", "auxiliary"} & config.to_dict().keys()


def test_a_folder_of_an_earlier_version(folder: Path, tmp_path: Path) -> None:
    """Its configuration lacks the auxiliary's sizes; loaded, it has them."""
    old = Path(shutil.copytree(folder, tmp_path / "old"))
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps({name: x for name, x in config.items() if name not in SIZES}))
    sim = tintc.load(old)
    assert {name: getattr(sim.config, name) for name in SIZES} == SIZES


def test_a_program_of_another_revision_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' Auto classes do not say which revision of a hub's repository they have read."""
    texts = {"program.tint": "another", "auxiliary.tint": "another"}
    monkeypatch.setattr("tintc.runtime.artefact.config.text_beside", lambda path, name, **hub: texts.get(name))
    config = json.loads((folder / "config.json").read_text())
    assert tintc.TintConfig.from_dict(config, name_or_path="someone/sim").program is None
    texts["program.tint"] = (folder / "program.tint").read_text()
    assert tintc.TintConfig.from_dict(config, name_or_path="someone/sim").program is not None


def test_from_config(folder: Path) -> None:
    """What the compiler emits is there, so it runs, fused; the auxiliary's tensors are zero, not what memory held."""
    sim = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    assert torch.equal(logits(sim), torch.zeros(2, 12, 23)) and sim.last_executor == "fused"
    stored = tintc.load(folder).state_dict()
    for name, tensor in sim.state_dict().items():
        same = name.startswith(("structure.", "rates."))
        assert torch.equal(tensor, stored[name] if same else torch.zeros_like(tensor)), name


def test_empty_ones(folder: Path) -> None:
    """accelerate's, and torch's device: nothing is held, and running it is refused."""
    config = AutoConfig.from_pretrained(folder)
    with accelerate.init_empty_weights():
        one = AutoModelForCausalLM.from_config(config)
    with torch.device("meta"):
        other = AutoModelForCausalLM.from_config(config)
    for sim in (one, other):
        assert {tensor.device.type for tensor in sim.parameters()} == {"meta"}
        with pytest.raises(OptionError, match="tensors are not in memory"):
            sim(IDS)


def test_from_tensors_alone(folder: Path) -> None:
    """Fused if the structural tensors are the compiler's own, literal if not."""
    right, config = logits(tintc.load(folder)), AutoConfig.from_pretrained(folder)
    tensors = dict(tintc.load(folder).state_dict())
    sim = TintForCausalLM.from_pretrained(None, config=config, state_dict=tensors)
    assert torch.equal(logits(sim), right) and sim.last_executor == "fused" and sim.tokenizer is None
    tensors["structure.linear_forward.w_o.0.weight"] = tensors["structure.linear_forward.w_o.0.weight"] * 1.5
    edited = TintForCausalLM.from_pretrained(None, config=config, state_dict=tensors)
    assert not torch.allclose(logits(edited), right) and edited.last_executor == "literal"
    with pytest.raises(OptionError, match="pass both, or the folder"):
        TintForCausalLM.from_pretrained(None, config=config)
    with pytest.raises(ArtefactError, match="The state dict does not fit its program: it lacks"):
        TintForCausalLM.from_pretrained(None, config=config, state_dict={"rates.x": torch.zeros(1)})


@pytest.mark.parametrize("kind", [TintForCausalLM, AutoModelForCausalLM])
def test_keywords(folder: Path, kind: Any) -> None:
    sim = kind.from_pretrained(pretrained_model_name_or_path=folder, use_cache=False, output_attentions=True)
    assert sim.config.use_cache is False and sim.config.output_attentions is True
    with pytest.raises(OptionError, match="not loaded with an argument 'foo'; leave it out"):
        kind.from_pretrained(folder, foo=1)


def test_advice_that_helps(folder: Path) -> None:
    """To compile again only where that mends it: see also test_damaged_folders.py."""
    with pytest.raises(ArtefactError, match="Leave variant out") as refused:
        TintForCausalLM.from_pretrained(folder, variant="fp16")
    with torch.device("meta"), pytest.raises(TintcError, match="not loaded onto the device meta") as also:
        TintForCausalLM.from_pretrained(folder)
    assert "Compile" not in str(refused.value) + str(also.value)
