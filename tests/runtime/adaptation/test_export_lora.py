"""Adapters of states: in peft, and written out by hand. fp64, 1e-9 of the largest logit for GPT-2, else 1e-6, because
transformers computes rotations and RMS norms in fp32; weights 1e-12 of the update."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from continuations import compiled, continued, worst
from fused_cases import family, token_ids
from safetensors.torch import load_file
from test_export import EXPORTED
from tiny_models import gpt2
from torch import Tensor
from transformers import AutoModelForCausalLM

import tintc
from tintc.errors import ArtefactError, ModelError, OptionError
from tintc.frontend.source.load import load_auxiliary
from tools.sweep.tiny import tiny_model

ALL = "values,out,ffn,norm-bias,norm-gain"
TEXT = token_ids(2, 11, seed=3)
MODELS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "gpt2": (EXPORTED["gpt2"], ALL, {"fan_in_fan_out": True, "bias": "none", "lora_bias": True}),
    "llama": (EXPORTED["llama"], ALL, {"fan_in_fan_out": False, "bias": "all", "lora_bias": False}),
    "gemma2": (EXPORTED["gemma2"], ALL, {"fan_in_fan_out": False, "bias": "none", "lora_bias": False}),
    "bloom": (EXPORTED["bloom"], "values,ffn", {"fan_in_fan_out": False, "bias": "none", "lora_bias": True}),
    "mixtral": (lambda: tiny_model("mixtral"), "values,out", {"fan_in_fan_out": False, "bias": "none"}),
}
"""Transposed weights; grouped heads, some biases; gains 1 + w; one tensor for three layers; experts beside."""
MORE = ("gemma2", "bloom", "mixtral")


def by_hand(model: Any, folder: Path) -> dict[str, Tensor]:
    """What the adapter makes of the model's tensors."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors, found = (
        load_file(folder / "adapter_model.safetensors"),
        {k: v.clone() for k, v in model.state_dict().items()},
    )
    for key, tensor in tensors.items():
        name = key.removeprefix("base_model.model.")
        assert name != key
        module, _, part = name.partition(".lora_")
        if part == "A.weight":
            change = tensors[key.replace("lora_A", "lora_B")] @ tensor
            assert config["r"] == config["lora_alpha"] == len(tensor) and module in config["target_modules"]
            found[f"{module}.weight"] += change.T if config["fan_in_fan_out"] else change
        elif part == "B.bias":
            found[f"{module}.bias"] += tensor
        elif not part:
            found[name.replace("base_layer.", "")] = tensor
    return found


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in MORE else n for n in MODELS])
def test_an_adapter_is_the_update(name: str, tmp_path: Path) -> None:
    """Of each text of a batch; exact at full rank, which train tokens bound."""
    make, descend, expected = MODELS[name]
    model = make().double()
    sim = tintc.compile(model, inner_lr=0.05, descend=descend, max_length=24)
    state = sim.adapt(token_ids(2, 16))
    state.export(tmp_path / "model", model=model, example=1)
    found = state.export(tmp_path / "lora", "lora", model=model, example=1)
    assert found is not None and found.error == 0 and found.rank == found.full_rank <= 8
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert {key: config[key] for key in expected} == expected
    right = {
        key: tensor.double()
        for key, tensor in AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto").state_dict().items()
    }
    before = model.state_dict()
    for key, tensor in by_hand(model, tmp_path / "lora").items():
        assert torch.allclose(
            tensor, right[key], rtol=0, atol=1e-12 * float((right[key] - before[key]).norm()) + 1e-14
        ), key
    peft = pytest.importorskip("peft", reason="pip install peft")
    tolerance = 1e-9 if name == "gpt2" else 1e-6
    model.config._experts_implementation = "eager"  # others know no fp64
    with torch.no_grad():
        plain = model(TEXT).logits
        adapted = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "lora").eval()
        logits = continued(sim, TEXT, state.example(1))
        assert worst(adapted(TEXT).logits, logits) < tolerance < 1e-4 < worst(plain, logits)
        if config["bias"] == "none":
            with adapted.disable_adapter():
                assert torch.equal(adapted(TEXT).logits, plain), "it can be taken off again"
        assert worst(adapted.merge_and_unload()(TEXT).logits, logits) < tolerance


def test_lower_ranks_keep_the_largest_singular_values(tmp_path: Path) -> None:
    """The error is that of the best approximation, and it is said."""
    model = family("gpt2").source.model.double()
    state = compiled("gpt2").adapt(token_ids(1, 16))
    full = state.export(tmp_path / "full", "lora", model=model)
    with pytest.warns(UserWarning, match=r"rank 2 leaves out 0\.\d+ of the update, whose rank is [78]"):
        low = state.export(tmp_path / "low", "lora", 2, model=model)
    assert full is not None and low is not None and (low.rank, low.full_rank) == (2, full.rank)
    before, exact, rough = model.state_dict(), by_hand(model, tmp_path / "full"), by_hand(model, tmp_path / "low")
    left = whole = 0.0
    for name, error in low.errors.items():
        change = exact[f"{name}.weight"] - before[f"{name}.weight"]
        missing = exact[f"{name}.weight"] - rough[f"{name}.weight"]
        values = torch.linalg.svdvals(change)
        assert float(missing.norm()) == pytest.approx(float(values[2:].norm()), rel=1e-9)
        assert error == pytest.approx(float(missing.norm() / change.norm()), rel=1e-9)
        left += float(missing.square().sum())
        whole += float(change.square().sum())
    assert low.error == pytest.approx((left / whole) ** 0.5, rel=1e-9) and 0.01 < low.error < 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        more = state.export(tmp_path / "more", "lora", 1000, model=model)
    assert more is not None and more.rank == full.rank, "no more than the update has"


def test_a_folder_that_names_its_base(tmp_path: Path) -> None:
    """An adapter of a simulator's folder is loaded by its own name, by tintc too; fp32, 1e-4 of the largest logit."""
    gpt2(n_layers=1, n_heads=3, head_dim=6, d_ff=31).save_pretrained(tmp_path / "base")
    sim = tintc.compile(tmp_path / "base", inner_lr=0.5)
    state = sim.adapt(token_ids(1, 16))
    found = state.export(tmp_path / "lora", "lora", model=tmp_path / "base")
    assert found is not None and found.rank <= 8, "rounding is not the update's"
    alone = state.export(tmp_path / "alone", "lora")
    assert alone == found
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    pytest.importorskip("peft", reason="pip install peft")
    again = load_auxiliary(tmp_path / "lora").model
    with torch.no_grad():
        assert worst(again(TEXT).logits, continued(sim, TEXT, state)) < 1e-4


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"kind": "peft"}, "kind of export is 'peft'; choose model or lora"),
    ({"kind": "lora", "rank": 0}, "rank is 0; it must be a whole number, at least 1"),
    ({"rank": 4}, "A model has no rank"),
    ({"kind": "lora", "example": 1}, "has 1 examples"),
]


def test_what_no_adapter_can_hold(tmp_path: Path) -> None:
    """Nothing is written."""
    model = tiny_model("mixtral", num_hidden_layers=1)
    experts = tintc.compile(model, inner_lr=0.05, max_length=24).adapt(token_ids(1, 12))
    with pytest.raises(
        ModelError, match=r"a stack of experts, for one\), and an adapter changes these alone; export with"
    ):
        experts.export(tmp_path / "out", "lora", model=model)
    model = family("gpt2").source.model
    state = compiled("gpt2").adapt(token_ids(1, 12))
    with pytest.raises(OptionError, match="changed no linear layer's weight"):
        compiled("gpt2").adapt(token_ids(1, 12), inner_lr=0.0).export(tmp_path / "out", "lora", model=model)
    for given, message in WRONG:
        with pytest.raises(OptionError, match=message):
            state.export(tmp_path / "out", model=model, **given)
    with pytest.raises(ModelError, match="is not the model that the simulator was compiled from"):
        state.export(tmp_path / "out", "lora", model=gpt2(n_layers=3, n_heads=3, head_dim=6, d_ff=31, seed=1))
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtefactError, match="exists already"):
        state.export(tmp_path / "out", "lora", model=model)
