"""The auxiliary before and after an update as an ordinary model, in TransformerLens, nnsight and circuitsvis.

fp64; 1e-9 of the logits' size for GPT-2, 1e-6 for Llama, whose rotations and RMS norms transformers computes in fp32.
"""

from __future__ import annotations

import copy
import linecache
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from command import ROOT, tokenizer
from continuations import compiled
from fused_cases import token_ids
from torch import Tensor

import tintc
from tintc.bridges import auxiliary, transformer_lens
from tintc.errors import ModelError, OptionError
from tintc.runtime.model.causal_lm import TintForCausalLM

MODEL = ROOT.parent / "shared" / "models" / "stories260K"
TOLERANCES = {"gpt2": 1e-9, "llama": 1e-6}
PROMPT, TEXT = token_ids(2, 14), token_ids(1, 9, seed=3)


@pytest.fixture(autouse=True)
def backward_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnsight, once imported, reads the source of every caller of `Tensor.backward`; other tests' may have none."""
    monkeypatch.setattr(torch.Tensor, "backward", torch.Tensor.backward)


def with_transformer_lens() -> None:
    """Skip where TransformerLens is not installed."""
    pytest.importorskip("transformer_lens.model_bridge", reason="pip install 'transformer-lens>=4'")


def off(found: Tensor, right: Tensor) -> float:
    return float((found.detach() - right).abs().max() / right.abs().max())


def wanted(sim: TintForCausalLM) -> tuple[Any, Tensor, Tensor]:
    """A state of two texts, logits of another text before the update, and those with the second one's weights."""
    with torch.no_grad():
        state = sim.adapt(PROMPT)
        before = sim(TEXT, return_before=True).logits_before
        after = sim(TEXT, state=state.select([1])).logits
    return state, before, after


@pytest.mark.parametrize("name", TOLERANCES)
def test_it_is_an_ordinary_model(name: str) -> None:
    sim = compiled(name)
    state, before, after = wanted(sim)
    stored = {key: tensor.clone() for key, tensor in sim.state_dict().items()}
    plain, updated = auxiliary(sim), auxiliary(sim, state, example=1)
    with torch.no_grad():
        assert off(plain(TEXT).logits, before) < TOLERANCES[name]
        assert off(updated(TEXT).logits, after) < TOLERANCES[name] < off(updated(TEXT).logits, before)
        for parameter in updated.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, stored[key]) for key, tensor in sim.state_dict().items())


@pytest.mark.parametrize("name", TOLERANCES)
def test_transformer_lens_has_its_hooks_and_the_same_logits(name: str) -> None:
    """Residual streams and attention patterns are the capture points of the passes before and after."""
    with_transformer_lens()
    sim = compiled(name)
    state, before, after = wanted(sim)
    with torch.no_grad(), sim.capture("pass0.layers.*.residual", "pass0.layers.*.attention") as seen:
        sim(TEXT)
    words = tokenizer()
    bridge = transformer_lens(sim, tokenizer=words)
    logits, cache = bridge.run_with_cache(TEXT)
    assert off(logits, before) < TOLERANCES[name]
    for layer in range(3):
        pattern, right = cache[f"blocks.{layer}.attn.hook_pattern"], seen[f"pass0.layers.{layer}.attention"]
        assert off(pattern, right) < TOLERANCES[name]
        if layer < 2:
            assert off(cache[f"blocks.{layer}.hook_out"], seen[f"pass0.layers.{layer}.residual"]) < TOLERANCES[name]
    updated = transformer_lens(sim, state, example=1, tokenizer=words)
    with torch.no_grad():
        assert off(updated(TEXT), after) < TOLERANCES[name] < off(updated(TEXT), before)
        without = updated.run_with_hooks(TEXT, fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: 0 * z)])
    assert off(without, after) > 1e-3, "a hook that edits is heard"


def test_what_transformer_lens_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = compiled("gpt2")
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge", None)
    with pytest.raises(OptionError, match="not installed: pip install"):
        transformer_lens(sim)
    monkeypatch.undo()
    with_transformer_lens()
    with pytest.raises(OptionError, match="pass tokenizer="):
        transformer_lens(sim)
    unknown: Any = copy.deepcopy(auxiliary(sim))
    unknown.config.architectures = ["NoSuchForCausalLM"]
    unknown.config.__class__ = type("NoSuchConfig", (type(unknown.config),), {"model_type": "nosuch"})
    with pytest.raises(ModelError, match="TransformerLens cannot take a GPT2LMHeadModel: Could not"):
        transformer_lens(sim, model=unknown, tokenizer=tokenizer())


def test_circuitsvis_shows_attention_before_and_after() -> None:
    """Its page holds the patterns of both passes, which differ."""
    attention = pytest.importorskip("circuitsvis.attention", reason="pip install circuitsvis")
    sim = compiled("gpt2")
    with torch.no_grad():
        out = sim(TEXT, output_attentions=True, return_before=True)
    words = [str(token) for token in TEXT[0].tolist()]
    pages = [
        str(attention.attention_patterns(tokens=words, attention=layers[2][0]))
        for layers in (out.attentions_before, out.attentions)
    ]
    assert all("AttentionPatterns" in page and f'"{words[0]}"' in page for page in pages)
    assert f"{float(out.attentions[2][0, 1, 5, 3]):.6f}"[:7] in pages[1]
    assert pages[0].partition("attention")[2] != pages[1].partition("attention")[2]


PACKAGES = {"TransformerLens": "transformer_lens", "nnsight": "nnsight", "circuitsvis": "circuitsvis"}
"""What the sections of the page need."""


@pytest.mark.skipif(not MODEL.exists(), reason=f"no pretrained model in {MODEL}")
def test_the_page_of_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python runs, section after section; one is left out where its package is not installed."""
    monkeypatch.chdir(tmp_path)
    tintc.compile(str(MODEL), n_steps=2, inner_lr=1e-4, max_length=128, output="sim")
    names: dict[str, Any] = {}
    page = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
    for section in page.split("\n## "):
        package = PACKAGES.get(section.partition("\n")[0])
        if package is None or find_spec(package) is not None:
            for text in re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
                name = f"a block of {section.partition(chr(10))[0]} that ends {text[-20:]!r}"
                linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name  # nnsight reads sources
                exec(compile(text, name, "exec"), names)
    with torch.no_grad():
        plain, updated = (names[name](names["ids"]).logits for name in ("plain", "updated"))
        right = names["sim"](names["ids"], state=names["state"]).logits
    assert off(updated, right) < 1e-4 < off(plain, right)
    if "before" in names:
        assert off(names["logits"], plain) < 1e-4 and off(names["after"](names["ids"]), right) < 1e-4
        assert off(names["patched"], right) > 1e-6
    if "traced" in names:
        assert off(names["without"], right) > 1e-3 and names["own"].last_executor == "literal"
    if "views" in names:
        assert Path("after.html").stat().st_size > 1000


def test_nnsight_traces_the_updated_auxiliary() -> None:
    """An ordinary model: what a trace reads of its layers is what the simulator's capture points have."""
    nnsight = pytest.importorskip("nnsight")
    sim = compiled("gpt2")
    state, _, after = wanted(sim)
    updated = auxiliary(sim, state, example=1)
    traced = nnsight.NNsight(updated)
    with torch.no_grad(), traced.trace(TEXT):
        stream = traced.transformer.h[1].output.save()
        logits = traced.lm_head.output.save()
    assert off(logits, after) < 1e-9
    assert stream.shape[-1] == sim.config.hidden_size
