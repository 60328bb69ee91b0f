"""Decoders outside transformers: any module that makes logits of token ids, and code that comes with a model."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Command
from nano_gpt import NanoGPT
from safetensors.torch import load_file
from tiny_models import relative, token_ids
from torch import Tensor, nn
from transformers import dynamic_module_utils

import tintc
from tintc.errors import ModelError, OptionError
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.source.load import load_auxiliary
from tintc.frontend.source.modules import HONOURED, LEFT_OUT, PADDING
from tintc.frontend.source.trust import TRUSTED
from tintc.reference import tune
from tintc.reference.verify import verify

VOCAB = 23


@dataclass
class Output:
    """What a stranger's forward may give, which torch.export knows nothing of."""

    logits: Tensor


def nano(**options: Any) -> NanoGPT:
    """A small nanoGPT in fp64."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "block_size": 16, "n_layers": 1, "n_heads": 2, "width": 12}
    return NanoGPT(**sizes | options).double().eval()


class Around(NanoGPT):
    """nanoGPT with another head on its forward."""

    def inner(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


class Attribute(Around):
    def forward(self, tokens: Tensor) -> Output:
        return Output(NanoGPT.forward(self, tokens)[0])


class Bare(Around):
    def forward(self, idx: Tensor) -> Tensor:
        return NanoGPT.forward(self, idx)[0]


class BatchOfPositions(Around):
    """Positions are ``[B, T]``."""

    def forward(self, idx: Tensor) -> Tensor:
        positions = torch.arange(idx.shape[1]).expand(idx.shape)
        return self.inner(self.wte(idx) + self.wpe(positions))


class ToldPositions(Around):
    """Positions ``[T]`` must be passed."""

    def forward(self, idx: Tensor, positions: Tensor) -> Tensor:
        return self.inner(self.wte(idx) + self.wpe(positions)[None])


class ToldBatch(Around):
    """Positions ``[B, T]`` must be passed."""

    def forward(self, idx: Tensor, position_ids: Tensor) -> Tensor:
        if position_ids.dim() != 2:
            raise ValueError("positions [B, T], please")
        return self.inner(self.wte(idx) + self.wpe(position_ids))


def of(kind: type[Around]) -> Around:
    torch.manual_seed(0)
    return kind(VOCAB, 16, 1, 2, 12).double().eval()


@pytest.mark.parametrize("kind", [Attribute, Bare, BatchOfPositions, ToldPositions, ToldBatch])
def test_forms_of_a_forward(kind: type[Around]) -> None:
    """All of them are the same decoder, and give the same simulator; padding changes nothing, in fp64 to 1e-12."""
    sim = tintc.compile(of(kind))
    ids = token_ids(2, 11, VOCAB)
    right = NanoGPT.forward(of(kind), ids)[0]
    with torch.no_grad():
        assert relative(sim(ids, return_before=True).logits_before, right) < 1e-12
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], 1)
        mask = torch.ones_like(padded)
        mask[:, :3] = 0
        before = sim(padded, attention_mask=mask, return_before=True).logits_before
    assert relative(before[:, 3:], right) < 1e-12


def test_a_folder_of_a_module(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It loads, runs by both executors, verifies against the module, and exports a state dict for it."""
    model = nano()
    with caplog.at_level(logging.WARNING, "tintc"):
        tintc.compile(model, output=tmp_path / "sim", inner_lr=1e-2, n_steps=2)
    assert f"NanoGPT is run as a module on token ids: {VOCAB} ids, texts of up to 16 tokens" in caplog.text
    sim = tintc.load(tmp_path / "sim")
    assert sim.config.provenance[PADDING] == LEFT_OUT and LEFT_OUT in (tmp_path / "sim" / "README.md").read_text()
    ids = token_ids(2, 14, VOCAB)
    with torch.no_grad():
        fused = sim(ids, return_before=True)
        literal = tintc.load(tmp_path / "sim", executor="literal")(ids, return_before=True)
    update = relative(fused.logits, fused.logits_before)
    assert relative(fused.logits_before, model(ids)[0]) < 1e-12
    assert relative(literal.logits, fused.logits) < 1e-9 * update
    source = load_auxiliary(model)
    graph = capture(source.model, 16)
    verdict = verify(str(tmp_path / "sim"), sim, source, ids[0], 7, graph)
    assert verdict.ok and verdict.update_error < 1e-9, verdict.problems
    tuned = tune(graph, ids, inner_lr=1e-2, n_steps=2)
    assert relative(fused.logits, tuned.logits) < 1e-3 * update
    state = sim.adapt(ids[:1])
    state.export(tmp_path / "updated", model=model)
    other = nano()
    other.load_state_dict(load_file(tmp_path / "updated" / "model.safetensors"))
    with torch.no_grad():
        assert relative(other(ids[:1])[0], sim(ids[:1], state=state).logits) < 1e-12
        assert relative(other(ids[:1])[0], model(ids[:1])[0]) > 1e-4
    with pytest.raises(ModelError, match="compiled from a model in memory; pass it"):
        state.export(tmp_path / "again")


def unlabelled() -> nn.Module:
    """A module that does not say how long its texts may be."""
    model = of(BatchOfPositions)
    del model.block_size
    return model


def test_the_longest_text_is_found_by_trial() -> None:
    assert load_auxiliary(unlabelled()).max_length == 16
    assert load_auxiliary(unlabelled(), max_length=5).max_length == 5
    with pytest.raises(OptionError, match=r"maximal length is 17, and BatchOfPositions cannot .*IndexError"):
        load_auxiliary(unlabelled(), max_length=17)


def test_sizes_that_are_given() -> None:
    """The model is left as it was."""
    model = nano()
    model.train()
    before = dict(vars(model))
    sim = tintc.compile(model, vocab_size=VOCAB, max_length=9)
    assert vars(model) == before and model.training
    assert (sim.config.vocab_size, sim.config.max_position_embeddings) == (VOCAB, 9)
    with pytest.raises(OptionError, match=f"vocab_size is 7, and NanoGPT gives logits of {VOCAB} ids"):
        tintc.compile(nano(), vocab_size=7)


class Masked(Around):
    """Takes a mask of tokens, and uses it or does not."""

    used = True

    def forward(self, idx: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        positions = torch.arange(idx.shape[1]).expand(idx.shape)
        if attention_mask is not None and self.used:
            positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        x = self.wte(idx) + self.wpe(positions)
        for block in self.blocks:
            x = block(x) if attention_mask is None or not self.used else self.masked(block, x, attention_mask)
        return self.head(self.ln_f(x))

    @staticmethod
    def masked(block: Any, x: Tensor, mask: Tensor) -> Tensor:
        heads = (*x.shape[:2], block.n_heads, -1)
        q, k, v = (part.view(heads).transpose(1, 2) for part in block.attn(block.ln_1(x)).chunk(3, dim=-1))
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() & mask[:, None, None].bool()
        y = nn.functional.scaled_dot_product_attention(q, k, v, seen)
        x = x + block.proj(y.transpose(1, 2).reshape(x.shape))
        return x + block.mlp(block.ln_2(x))


@pytest.mark.parametrize(("used", "said"), [(True, HONOURED), (False, LEFT_OUT)])
def test_whether_padding_is_honoured_is_said(used: bool, said: str) -> None:
    model: Any = of(Masked)
    model.used = used
    assert tintc.compile(model).config.provenance[PADDING] == said


class LastToken(Around):
    """As nanoGPT's own forward without targets."""

    def forward(self, idx: Tensor) -> Tensor:
        return NanoGPT.forward(self, idx)[0][:, [-1]]


class NeedsMore(Around):
    def forward(self, idx: Tensor, image: Tensor) -> Tensor:
        return NanoGPT.forward(self, idx)[0] + image


class Dictionary(Around):
    def forward(self, idx: Tensor) -> dict[str, Tensor]:
        return {"logits": NanoGPT.forward(self, idx)[0]}


class Pooled(Around):
    def forward(self, idx: Tensor) -> Tensor:
        return NanoGPT.forward(self, idx)[0].mean(1)


REFUSED = {
    LastToken: r"LastToken gives logits of the last token alone, \[2, 1, 23\] .* return those of every token",
    NeedsMore: "NeedsMore cannot be run on token ids alone: its forward also needs image; give these defaults",
    Dictionary: "Dictionary gives no logits: what it gives is a dict",
    Pooled: r"Pooled gives \[2, 23\] for ids \[2, 3\]; pass a module that gives logits",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_modules_that_are_no_decoder(kind: type[Around]) -> None:
    with pytest.raises(ModelError, match=REFUSED[kind]) as refused:
        tintc.compile(of(kind))
    assert len(str(refused.value).splitlines()) == 1


CODE = """
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class MineConfig(PretrainedConfig):
    model_type = "mine"

    def __init__(self, vocab_size=23, hidden_size=12, max_position_embeddings=16, **others):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.max_position_embeddings, self.num_hidden_layers = max_position_embeddings, 1
        super().__init__(**others)


class Mine(PreTrainedModel{mixin}):
    config_class = MineConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed, self.places = nn.Embedding(23, 12), nn.Embedding(16, 12)
        self.qkv, self.out, self.head = nn.Linear(12, 36), nn.Linear(12, 12), nn.Linear(12, 23)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None):
        length = input_ids.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        if attention_mask is not None:
            seen = seen & attention_mask[:, None, None].bool()
        x = self.embed(input_ids) + self.places(torch.arange(length)[None] if position_ids is None else position_ids)
        q, k, v = (part.unflatten(-1, (2, 6)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return CausalLMOutput(logits=self.head(x + self.out(y.transpose(1, 2).flatten(2))))
"""


@pytest.fixture
def coded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A folder of a model with code of its own; the parameter is what its class mixes in."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "coded"
    folder.mkdir()
    (folder / "mine.py").write_text(CODE.replace("{mixin}", request.param))
    spec = spec_from_file_location("mine", folder / "mine.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    module.Mine(module.MineConfig()).save_pretrained(folder)
    entries = json.loads((folder / "config.json").read_text())
    entries["auto_map"] = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}
    (folder / "config.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.parametrize("coded", [pytest.param(", GenerationMixin", marks=pytest.mark.slow), ""], indirect=True)
def test_code_that_comes_with_a_model(coded: Path, tmp_path: Path) -> None:
    """It is run for those who trust it alone, and the artefact names its files; also where it cannot generate."""
    with pytest.raises(ModelError, match=r"coded has Python code of its own .*: pass --trust-remote-code"):
        tintc.compile(coded)
    assert not (tmp_path / "modules").exists()
    sim = tintc.compile(coded, trust_remote_code=True, output=tmp_path / "sim")
    digest = hashlib.sha256((coded / "mine.py").read_bytes()).hexdigest()
    assert sim.config.provenance[TRUSTED] == f"mine.py sha256 {digest}"
    assert f"mine.py sha256 {digest}" in (tmp_path / "sim" / "README.md").read_text()
    assert tintc.load(tmp_path / "sim").config.provenance[TRUSTED]


@pytest.mark.parametrize("coded", [", GenerationMixin"], indirect=True)
def test_the_command_trusts_when_told_to(coded: Path, tmp_path: Path, command: Command) -> None:
    refused = command("explain", str(coded))
    assert refused.code == 2 and "--trust-remote-code" in refused.err
    assert command("explain", str(coded), "--trust-remote-code").code == 0
    assert command("compile", str(coded), "-o", str(tmp_path / "sim"), "--trust-remote-code").code == 0
    assert command("verify", str(tmp_path / "sim"), str(coded), "--trust-remote-code", "--length", "12").code == 0
