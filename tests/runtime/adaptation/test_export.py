"""States written as the auxiliary's own kind of model.

fp64, 1e-9 of the largest logit for GPT-2, else 1e-6, because transformers computes rotations and RMS norms in fp32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import tokenizer
from continuations import compiled, continued, worst
from fused_cases import token_ids
from tiny_models import gpt2, llama
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import tintc
from tintc.errors import ArtefactError, ModelError
from tintc.runtime.model.causal_lm import TintForCausalLM
from tools.sweep.tiny import tiny_model

EXPORTED: dict[str, Any] = {
    "gpt2": lambda: gpt2(n_heads=3, head_dim=6, d_ff=31),
    "llama": lambda: llama(n_layers=1, n_heads=4, n_kv_heads=2, head_dim=6, attention_bias=True),
    "bloom": lambda: tiny_model("bloom"),
    "gpt_neox": lambda: tiny_model("gpt_neox"),
    "falcon": lambda: tiny_model("falcon"),
    "gemma2": lambda: tiny_model("gemma2", num_hidden_layers=1, layer_types=["sliding_attention"]),
    "phi3": lambda: tiny_model("phi3", num_hidden_layers=1),
}
"""Transposed weights; grouped heads; query, key and value in one tensor, each in its own order; gains 1 + w."""


MORE = ("llama", "gpt_neox", "falcon", "bloom")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in MORE else n for n in EXPORTED])
def test_exported(name: str, tmp_path: Path) -> None:
    model = EXPORTED[name]().double()
    sim = tintc.compile(model, inner_lr=0.05, descend="values,out,ffn,norm-bias,norm-gain", max_length=24)
    ids, text = token_ids(2, 16), token_ids(2, 11, seed=3)
    state = sim.adapt(ids)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for example in range(2):
        state.export(tmp_path / str(example), model=model, example=example)
        alone = AutoModelForCausalLM.from_pretrained(tmp_path / str(example), dtype="auto").eval()
        assert type(alone) is type(model) and alone.dtype == torch.float64
        check_exported_without_a_model(state, alone, tmp_path / f"{example} alone", example)
        with torch.no_grad():
            found, unchanged = alone(text).logits, model(text).logits
        right = continued(sim, text, state.example(example))
        assert worst(found, right) < (1e-9 if name == "gpt2" else 1e-6)
        assert worst(unchanged, right) > 1e-4
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    check_trained_and_exported(sim, model, text, tmp_path, sums=name == "gemma2")


def test_exported_after_normalised_steps(tmp_path: Path) -> None:
    model = gpt2(n_layers=1, n_heads=3, head_dim=6, d_ff=31).double()
    rule: dict[str, Any] = {"optimizer": "normalized", "normalize": "all", "momentum": 0.5, "decay": 0.3}
    sim = tintc.compile(model, n_steps=2, inner_lr=0.3, max_length=24, **rule)
    ids, text = token_ids(2, 16), token_ids(2, 11, seed=3)
    state = sim.adapt(ids)
    state.export(tmp_path / "a", model=model, example=1)
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype="auto").eval()(text).logits
    assert worst(found, continued(sim, text, state.example(1))) < 1e-9


def check_exported_without_a_model(state: Any, alone: Any, folder: Path, example: int) -> None:
    """What the simulator keeps gives the same model, tensor by tensor; a gain 1 + w has been rounded."""
    state.export(folder, example=example)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert type(again) is type(alone) and again.config.to_diff_dict().keys() == alone.config.to_diff_dict().keys()
    expected = alone.state_dict()
    for key, tensor in again.state_dict().items():
        assert float((tensor - expected[key]).abs().max()) < 1e-14 * max(1.0, float(expected[key].abs().max())), key


@torch.no_grad()
def check_trained_and_exported(sim: TintForCausalLM, model: Any, text: Tensor, folder: Path, sums: bool) -> None:
    """Prefixes that were trained are written whether they are updated or not; gains 1 + w would no longer be that, and
    other tables are another model's."""
    for parameter in sim.prefixes.parameters():
        parameter.mul_(1.01)
    state = sim.adapt(token_ids(1, 16))
    if sums:
        with pytest.raises(ModelError, match="is not it and a number"):
            state.export(folder / "trained", model=model)
    else:
        state.export(folder / "trained", model=model)
        alone = AutoModelForCausalLM.from_pretrained(folder / "trained", dtype="auto").eval()
        assert worst(alone(text).logits, continued(sim, text, state)) < 1e-6
    next(sim.tables.parameters()).mul_(1.01)
    with pytest.raises(ModelError, match="if the simulator's tables were trained"):
        sim.adapt(token_ids(1, 16)).export(folder / "tables", model=model)


def test_where_the_auxiliary_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    gpt2(n_layers=1, vocab=24).save_pretrained(tmp_path / "aux")
    tokenizer().save_pretrained(tmp_path / "aux")
    sim = tintc.compile(tmp_path / "aux", inner_lr=0.1)
    state = sim.adapt(token_ids(1, 12, 24))
    sim.config.described = None  # as of an earlier version
    with pytest.raises(ModelError, match=r"compiled from aux, which is not in the current folder; pass its folder"):
        state.export(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    state.export("out")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == len(tokenizer())
    with pytest.raises(ArtefactError, match="exists already"):
        state.export("out")
    with pytest.raises(ModelError, match="is not the model that the simulator was compiled from"):
        state.export("again", model=gpt2(n_layers=1, vocab=24, seed=1))
    for other in (gpt2(n_layers=1, vocab=24, d_ff=31), gpt2(n_layers=1, vocab=24, n_heads=3)):
        with pytest.raises(ModelError, match="is not the model that the simulator was compiled from"):
            state.export("again", model=other)
    with pytest.raises(ModelError, match="has no tensor"):
        state.export("again", model=llama(n_layers=1, vocab=24))
    assert not (tmp_path / "again").exists()
    memory = compiled("gpt2").adapt(token_ids(1, 8))
    monkeypatch.setattr(memory.sim.config, "described", None)
    with pytest.raises(ModelError, match="compiled from a model in memory"):
        memory.export("again")


def test_a_folder_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder's name may be that of another model on the hub; nobody asks there for it."""
    gpt2(n_layers=1, vocab=24).save_pretrained(tmp_path / "gpt2")
    state = tintc.compile(tmp_path / "gpt2", inner_lr=0.1).adapt(token_ids(1, 12, 24))
    state.sim.config.described = None  # as of an earlier version
    monkeypatch.setattr(
        "tintc.runtime.adaptation.export_hf.load_auxiliary", lambda *_: pytest.fail("something was loaded")
    )
    with pytest.raises(ModelError, match="pass its folder, file or id with model="):
        state.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_keeps_what_an_export_needs(tmp_path: Path) -> None:
    """fp32: the weights are the model's own, so what was not updated is the same to the bit."""
    model = gpt2(n_layers=1, vocab=24)
    model.save_pretrained(tmp_path / "aux")
    tintc.compile(tmp_path / "aux", inner_lr=0.1, output=tmp_path / "sim")
    (tmp_path / "aux" / "config.json").unlink()
    described = (tmp_path / "sim" / "auxiliary.json").read_text()
    assert str(tmp_path) not in described
    sim = tintc.load(tmp_path / "sim")
    sim.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "auxiliary.json").read_text() == described
    state = sim.adapt(token_ids(1, 12, 24))
    state.export(tmp_path / "out")
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    text = token_ids(1, 9, 24, seed=3)
    with torch.no_grad():
        assert worst(alone(text).logits, continued(sim, text, state)) < 1e-5
    name = "transformer.wte.weight"
    assert torch.equal(alone.state_dict()[name], model.state_dict()[name])
    assert alone.config.n_positions == model.config.n_positions


def test_what_a_simulator_does_not_hold_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sim = compiled("gpt2")
    entries = json.loads(sim.config.described or "")
    changes: dict[str, tuple[dict[str, Any], str]] = {
        "a layer more": (
            {"config": entries["config"] | {"n_layer": entries["config"]["n_layer"] + 1}},
            r"does not hold transformer\.h\.\d.* and \d+ more .* with model=",
        ),
        "another class": ({"class": "MyModel"}, "transformers has no MyModel"),
    }
    for change, message in changes.values():
        monkeypatch.setattr(sim.config, "described", json.dumps(entries | change))
        with pytest.raises(ModelError, match=message):
            sim.adapt(token_ids(1, 8)).export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_trained_tables_go_with_what_a_simulator_keeps(tmp_path: Path) -> None:
    """fp32: the table is written as it is."""
    sim = tintc.compile(gpt2(n_layers=1), inner_lr=0.1)
    with torch.no_grad():
        for table in sim.tables.parameters():
            table.mul_(1.01)
    text = token_ids(1, 9, seed=3)
    state = sim.adapt(token_ids(1, 12))
    state.export(tmp_path / "out")
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert worst(alone(text).logits, continued(sim, text, state)) < 1e-5
