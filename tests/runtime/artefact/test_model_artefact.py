"""An artefact survives saving and loading, by tintc and by transformers, without the auxiliary's folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import gpt2, llama, opt, token_ids
from transformers import AutoConfig, AutoModelForCausalLM

import tintc
from tintc.cli.inspect import read_artefact
from tintc.errors import ArtefactError, OptionError
from tintc.runtime.artefact.config import FORMAT_VERSION

MAKERS = {
    "gpt2": lambda: gpt2(n_layers=1, n_heads=3, head_dim=6, d_ff=31),
    "opt": lambda: opt(n_layers=1, n_heads=3, head_dim=4, d_ff=20),
    "llama": lambda: llama(n_layers=1, n_heads=3, n_kv_heads=1, head_dim=4, d_ff=20),
}


@pytest.mark.parametrize(
    "name", [pytest.param("gpt2", marks=pytest.mark.slow), pytest.param("opt", marks=pytest.mark.slow), "llama"]
)
def test_round_trip_without_the_auxiliary(name: str, tmp_path: Path) -> None:
    """Same tensors, program and files, bit for bit, after compile -> save -> load -> save -> load; outputs to 1e-12.

    fp64. Tensors that are mapped from the file lie elsewhere in memory, so matrix products may round differently.
    """
    MAKERS[name]().double().save_pretrained(tmp_path / "aux")
    sim = tintc.compile(tmp_path / "aux", n_steps=2, inner_lr=0.01)
    sim.executor = "literal"
    sim.save_pretrained(tmp_path / "one")
    shutil.rmtree(tmp_path / "aux")
    first = tintc.load(tmp_path / "one", executor="literal")
    second = AutoModelForCausalLM.from_pretrained(tmp_path / "one", executor="literal")
    second.save_pretrained(tmp_path / "two")
    third = tintc.TintForCausalLM.from_pretrained(tmp_path / "two", executor="literal")
    ids, state = token_ids(2, 9), sim.state_dict()
    with torch.no_grad():
        right = sim(ids).logits
        for other in (first, second, third):
            assert isinstance(other, tintc.TintForCausalLM) and other.dtype == torch.float64
            assert list(other.state_dict()) == list(state)
            assert all(torch.equal(tensor, state[key]) for key, tensor in other.state_dict().items())
            assert float((other(ids).logits - right).norm() / right.norm()) < 1e-12
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {"README.md", "config.json", "model.safetensors", "program.tint"} <= set(files)
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_same_input_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        tintc.compile(MAKERS["gpt2"]()).save_pretrained(tmp_path / folder)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_the_configuration(tmp_path: Path) -> None:
    sim = tintc.compile(
        MAKERS["llama"](), n_steps=2, n_update_layers=1, inner_lr=0.3, loss="quad", max_length=20, stack=1
    )
    sim.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, tintc.TintConfig) and config.model_type == "tint"
    assert (config.n_steps, config.n_update_layers, config.inner_lr, config.loss) == (2, 1, 0.3, "quad")
    assert (config.stack, config.max_position_embeddings, config.vocab_size, config.train_fraction) == (1, 20, 53, 0.5)
    assert config.d_sim == sim.layout.d_sim and config.n_prefixes == sim.layout.n_prefixes
    assert set(config.digests) == {"program", "structure", "options"} and config.provenance["model_type"] == "llama"
    assert "program" not in json.loads((tmp_path / "config.json").read_text())


@pytest.fixture(scope="module")
def in_fp64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fp64") / "sim"
    tintc.compile(MAKERS["gpt2"](), dtype="float64").save_pretrained(out)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, "bfloat16"])
def test_loading_in_another_type(dtype: torch.dtype | str, in_fp64: Path) -> None:
    sim = tintc.load(in_fp64, dtype=dtype, executor="literal")
    wanted = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    assert sim.dtype == wanted
    with torch.no_grad():
        assert sim(token_ids(1, 6)).logits.dtype == wanted
    rates = {parameter.dtype for parameter in sim.rates.parameters()}
    assert rates == {torch.float32}, "rates stay in fp32 or better"


def test_damaged_folders_are_refused(one_layer_sim: Path, tmp_path: Path) -> None:
    whole = one_layer_sim

    def broken(name: str) -> Path:
        return Path(shutil.copytree(whole, tmp_path / name))

    (broken("no program") / "program.tint").unlink()
    (broken("no weights") / "model.safetensors").unlink()
    (broken("no config") / "config.json").unlink()
    (broken("bad config") / "config.json").write_text("{")
    cut = broken("cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    for name in ("no program", "no weights", "no config", "bad config", "cut", "nowhere"):
        with pytest.raises(ArtefactError):
            tintc.load(tmp_path / name)
    with pytest.raises(OptionError, match="dtype 'int8' is not supported"):
        tintc.load(whole, dtype="int8")
    with pytest.raises(OptionError, match="executor 'quick' is unknown"):
        tintc.load(whole, executor="quick")


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, "2.0"])
def test_a_newer_format_is_refused(version: int | str, one_layer_sim: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(one_layer_sim, tmp_path / "sim"))
    file = folder / "config.json"
    config = json.loads(file.read_text())
    assert config["format_version"] == FORMAT_VERSION
    file.write_text(json.dumps(config | {"format_version": version}))
    for read in (tintc.load, tintc.TintForCausalLM.from_pretrained, lambda path: read_artefact(str(path))):
        with pytest.raises(ArtefactError, match=rf"newer tintc \(format {version}; .*\); update tintc\.$"):
            read(folder)
