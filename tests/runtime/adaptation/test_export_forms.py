"""States of models that are more than a decoder: of wrappers, and with adapters that are layers. fp64.

1e-6 of the largest logit where transformers computes rotations and RMS norms in fp32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from continuations import continued, worst
from tiny_models import adapted, gpt2, llama, token_ids
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from wrappers import wrapper

import tintc
from tintc.errors import ModelError
from tools.sweep.tiny import VOCAB

IDS, TEXT = token_ids(1, 14, VOCAB), token_ids(2, 9, VOCAB, seed=3)


ONE: dict[str, Any] = {"num_hidden_layers": 1}


@pytest.mark.parametrize(
    ("kind", "alone", "decoder"),
    [
        ("llava", "LlamaForCausalLM", ONE),
        ("gemma3", "Gemma3ForCausalLM", ONE | {"layer_types": ["sliding_attention"]}),
    ],
    ids=["llava", "gemma3"],
)
def test_the_decoder_of_a_wrapper_is_exported_alone(
    kind: str, alone: str, decoder: dict[str, Any], tmp_path: Path
) -> None:
    """Without the wrapper: a model of text, with the head tied as in the wrapper and gains 1 + w."""
    sim = tintc.compile(wrapper(kind, **decoder), inner_lr=0.02, descend="values,out,ffn,norm-gain", max_length=24)
    state = sim.adapt(IDS)
    state.export(tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert type(exported).__name__ == alone and exported.dtype == torch.float64
    with torch.no_grad():
        assert worst(exported(TEXT).logits, continued(sim, TEXT, state)) < 1e-6
        assert worst(exported(TEXT).logits, sim(TEXT, return_before=True).logits_before) > 1e-4


def test_a_decoder_that_is_no_model_by_itself_needs_its_wrapper(tmp_path: Path) -> None:
    model = wrapper("qwen2_5_vl", **ONE)
    sim = tintc.compile(model, inner_lr=0.02, max_length=24)
    state = sim.adapt(IDS)
    with pytest.raises(ModelError, match=r"the decoder Qwen2_5_VLTextModel in .* no model of transformers is that"):
        state.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    state.export(tmp_path / "out", model=model)
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto").eval()
    with torch.no_grad():
        assert worst(whole(TEXT).logits, continued(sim, TEXT, state)) < 1e-6


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_kept_adapters_are_merged_with_what_they_have_learnt(name: str, tmp_path: Path) -> None:
    """GPT-2 has query, key and value in one adapter, and its weights are stored ``[in, out]``."""
    base: Any = llama(vocab=VOCAB, n_layers=1) if name == "llama" else gpt2(vocab=VOCAB, n_layers=1)
    targets = ["q_proj", "v_proj", "down_proj"] if name == "llama" else ["c_attn", "c_proj"]
    model = adapted(base, targets).double()
    sim = tintc.compile(model, keep_adapters=True, descend="values,lora", inner_lr=0.05, output=tmp_path / "sim")
    state = sim.adapt(IDS)
    state.export(tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert not any("lora" in key for key in exported.state_dict())
    with torch.no_grad():
        assert worst(exported(TEXT).logits, continued(sim, TEXT, state)) < 1e-6
        assert worst(exported(TEXT).logits, model(TEXT).logits) > 1e-4
    told = state.export(tmp_path / "adapter", kind="lora")
    assert told is not None and told.error < 1e-6
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == told.rank
    merged = model.merge_and_unload()
    peft = pytest.importorskip("peft")
    again = peft.PeftModel.from_pretrained(merged, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert worst(again(TEXT).logits, continued(sim, TEXT, state)) < 1e-6


def test_adapters_that_are_more_than_two_matrices_are_not_merged(tmp_path: Path) -> None:
    sim = tintc.compile(adapted(llama(n_layers=1), ["v_proj"]), keep_adapters=True, descend="lora", inner_lr=0.05)
    sim.config.described = None
    with pytest.raises(ModelError, match="more than two matrices"):
        sim.adapt(token_ids(1, 12)).export(tmp_path / "out")
