"""Attention as decoders of Hugging Face write it: windows, ALiBi, norms of q and k, rotary tables, fused projections.

fp64; 1e-5 relative to the eager model, which drops to fp32 here and there, and 1e-8 to the exported graph with those
casts dropped (1e-6 where the graph holds a table of cosines in fp32).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import build, relative, token_ids

from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.ir.auxiliary.interpreter import forward, load
from tintc.ir.core import Program
from tintc.ir.inputs import resolve_inputs
from tintc.lowering.passes.assign_layers import assign_layers
from tintc.lowering.passes.canonicalise import canonicalise
from tintc.reference.captured import run_captured

SIZES: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_size": 60,
    "num_attention_heads": 3,
    "intermediate_size": 45,
    "vocab_size": 53,
    "max_position_embeddings": 32,
}
GROUPED = {**SIZES, "num_key_value_heads": 1}


def imported(model_type: str, attention: str = "sdpa", tolerance: float = 1e-8, **options: Any) -> Program:
    """The program, checked without and with padding on the left."""
    model = build(model_type, attention, **options)
    graph = capture(model)
    program = assign_layers(canonicalise(import_graph(graph)))
    tensors, ids = load(program, graph.tensors), token_ids(2, 13)
    padding = torch.ones(2, 13, dtype=torch.long)
    padding[0, :4] = 0
    with torch.no_grad():
        logits = forward(program, tensors, resolve_inputs(ids))
        assert relative(logits, run_captured(graph, ids)) < tolerance
        padded = forward(program, tensors, resolve_inputs(ids, attention_mask=padding))
        positions = (padding.cumsum(1) - 1).clamp(min=0)
        places = {} if model_type in ("mpt", "bloom") else {"position_ids": positions}
        found = model(ids, attention_mask=padding, **places).logits.double()
        assert relative(logits, model.double()(ids).logits) < 1e-5
        assert relative(padded[padding.bool()], found[padding.bool()]) < 1e-5
    return program


def attentions(program: Program) -> list[dict[str, Any]]:
    return [op.attributes() for op in program.ops if op.opname == "aux.attention"]


def norms(program: Program, role: str) -> list[dict[str, Any]]:
    return [op.attributes() for op in program.ops if op.opname == "aux.norm" and op.attributes().get("role") == role]


def test_windows_of_all_layers() -> None:
    program = imported("mistral", **GROUPED, head_dim=20, sliding_window=8)
    assert [op["window"] for op in attentions(program)] == [8]


def test_a_window_as_wide_as_the_longest_text_is_none() -> None:
    graph = capture(build("mistral", **GROUPED, head_dim=20, sliding_window=8), max_length=8)
    assert all("window" not in op for op in attentions(import_graph(graph)))


def test_windows_of_some_layers_and_scores_without_a_scale() -> None:
    sizes = {"num_layers": 2, "hidden_size": 60, "num_heads": 3, "vocab_size": 53, "max_position_embeddings": 32}
    kinds = {"attention_types": [[["global", "local"], 1]], "window_size": 8}
    found = attentions(imported("gpt_neo", "eager", **sizes, **kinds))
    assert "window" not in found[0] and found[1]["window"] == 8 and found[0]["scale"] == 1.0


def test_alibi() -> None:
    program = imported(
        "mpt", "eager", d_model=64, n_heads=4, n_layers=1, expansion_ratio=2, vocab_size=53, max_seq_len=32
    )
    assert attentions(program)[0]["slopes"] == pytest.approx((2**-2, 2**-4, 2**-6, 2**-8))


@pytest.mark.parametrize("heads", ["one", "each", "all"])
def test_norms_of_queries_and_keys(heads: str) -> None:
    if heads == "all":
        program = imported("olmo2", **GROUPED)
        assert all("groups" not in op for op in norms(program, "qk"))
    elif heads == "each":
        program = imported("persimmon", **SIZES, partial_rotary_factor=0.5)
        assert all(op["groups"] == 3 and op["kind"] == "layer" for op in norms(program, "qk"))
    else:
        program = imported("qwen3", **GROUPED, head_dim=24)
        assert sorted({op.get("groups", 1) for op in norms(program, "qk")}) == [1, 3]
    assert len(norms(program, "qk")) == 2


def test_norms_behind_the_rotation() -> None:
    program = imported("hunyuan_v1_dense", **GROUPED, head_dim=20)
    assert all(op["gain"].startswith("constant.gain.") for op in attentions(program))
    assert len(norms(program, "qk")) == 2 and all("weight" not in op for op in norms(program, "qk"))


def test_interleaved_rotary_from_a_table() -> None:
    sizes = {"n_layer": 1, "n_head": 3, "n_embd": 60, "n_positions": 32, "vocab_size": 53}
    program = imported("gptj", "eager", 1e-6, **sizes, rotary_dim=8)
    assert {op["rotary_style"] for op in attentions(program)} == {"interleaved"}


FALCONS: dict[str, dict[str, Any]] = {
    "one key head": {"num_attention_heads": 3, "hidden_size": 60},
    "groups": {"new_decoder_architecture": True, "num_attention_heads": 4, "num_kv_heads": 2, "hidden_size": 80},
    "as many": {"multi_query": False, "parallel_attn": False, "num_attention_heads": 3, "hidden_size": 60},
}


@pytest.mark.parametrize("name", FALCONS)
def test_three_architectures_of_one_fused_projection(name: str) -> None:
    imported("falcon", num_hidden_layers=1, vocab_size=53, max_position_embeddings=32, **FALCONS[name])


SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 16},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
]


SELDOM = ("linear",)
"""As llama3, other numbers in a buffer."""


@pytest.mark.parametrize(
    "scaling",
    [pytest.param(one, marks=[pytest.mark.slow] * (one["rope_type"] in SELDOM)) for one in SCALINGS],
    ids=lambda scaling: scaling["rope_type"],
)
def test_rope_scaling(scaling: dict[str, Any]) -> None:
    program = imported("llama", **GROUPED, rope_parameters={"rope_theta": 10000.0, **scaling})
    assert scaling["rope_type"] != "yarn" or attentions(program)[0]["scale"] > 20**-0.5


def test_values_that_are_scaled() -> None:
    """By a number, after they are split into heads; their layers descend as others' do."""
    sizes = {**GROUPED, "num_attention_heads": 4, "head_dim": 20, "v_head_dim": 12, "sliding_window": 8}
    sizes |= {"layer_types": ["full_attention"], "mlp_layer_types": ["dense"]}
    program = imported("mimo_v2_flash", "eager", **sizes, attention_value_scale=0.6, n_routed_experts=4)
    scales = [op for op in program.ops if op.opname == "aux.scale"]
    assert [op.attributes()["factor"] for op in scales] == [pytest.approx(0.6)]
    roles = [op.attributes().get("role") for op in program.ops if op.opname == "aux.linear"]
    assert roles.count("value") == 1
