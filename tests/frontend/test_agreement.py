"""The imported program computes what the model computes, on batches and lengths other than the captured ones.

fp64 throughout. 1e-5 relative to the eager model, which drops to fp32 inside norms, softmax and rotary tables; 1e-9 to
the exported graph with those casts dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import build, gpt2, llama, opt, relative, token_ids
from transformers import PreTrainedModel

from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.frontend.source.load import load_auxiliary
from tintc.ir.auxiliary.interpreter import forward, load
from tintc.ir.core import Program
from tintc.ir.inputs import resolve_inputs
from tintc.ir.text import parse_program, print_program
from tintc.lowering.passes.assign_layers import assign_layers
from tintc.lowering.passes.canonicalise import canonicalise
from tintc.reference.captured import run_captured

FEW = settings(max_examples=2, deadline=None, derandomize=True)
HEADS = st.sampled_from([(1, 12), (3, 8), (4, 6), (5, 4)])
WIDTHS = st.sampled_from([17, 45, 64])
SIZES: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 45,
    "vocab_size": 53,
    "max_position_embeddings": 32,
}


def agree(model: PreTrainedModel, batch: int = 3, length: int = 13) -> Program:
    graph = capture(model)
    imported = import_graph(graph)
    program = assign_layers(canonicalise(imported))
    text = print_program(program)
    assert print_program(parse_program(text)) == text
    ids = token_ids(batch, length)
    inputs = resolve_inputs(ids)
    logits = forward(program, load(program, graph.tensors), inputs)
    assert relative(forward(imported, load(imported, graph.tensors), inputs), logits) < 1e-12
    with torch.no_grad():
        assert relative(logits, run_captured(graph, ids)) < 1e-9
        assert relative(logits, model.double()(ids).logits) < 1e-5
    return program


@FEW
@given(HEADS, st.none() | WIDTHS, st.booleans())
def test_gpt2(heads: tuple[int, int], d_ff: int | None, tied: bool) -> None:
    agree(gpt2(1, *heads, d_ff, tie_word_embeddings=tied))


@pytest.mark.slow
@FEW
@given(HEADS, WIDTHS, st.booleans(), st.booleans())
def test_opt(heads: tuple[int, int], d_ff: int, bias: bool, tied: bool) -> None:
    agree(opt(2, *heads, d_ff, enable_bias=bias, tie_word_embeddings=tied))


@FEW
@given(st.sampled_from([(3, 1, 20), (4, 2, 8), (6, 3, 4), (2, 2, 10)]), WIDTHS, st.booleans(), st.booleans())
def test_llama(heads: tuple[int, int, int], d_ff: int, bias: bool, tied: bool) -> None:
    program = agree(llama(1, *heads, d_ff, attention_bias=bias, mlp_bias=bias, tie_word_embeddings=tied))
    attention = next(op for op in program.ops if op.opname == "aux.attention")
    assert attention.attributes()["inv_freq"] == "model.rotary_emb.inv_freq"
    assert (attention.attributes()["n_heads"], attention.attributes()["n_kv_heads"]) == heads[:2]


@pytest.mark.parametrize("make", [opt, llama])
def test_attention_written_out(make: Callable[..., PreTrainedModel]) -> None:
    agree(make(attention="eager", n_layers=1))


def test_fused_interleaved_projection_and_parallel_residual() -> None:
    program = agree(build("gpt_neox", **SIZES))
    assert "gpt_neox.layers.0.attention.query_key_value.v.weight" in program.parameters


def test_fused_gate() -> None:
    program = agree(build("phi3", **SIZES, num_key_value_heads=2))
    assert {"model.layers.0.mlp.gate_up_proj.gate.weight", "model.layers.0.mlp.gate_up_proj.up.weight"} <= set(
        program.parameters
    )


def test_half_precision_weights_are_taken_as_they_are() -> None:
    agree(llama(n_layers=1).bfloat16())


GOLDEN = [pytest.param(f"golden/{name}-0", marks=pytest.mark.slow) for name in ("gpt2", "opt")]


@pytest.mark.parametrize("folder", ["models/stories260K", *GOLDEN])
def test_stored_models(shared: Path, folder: str) -> None:
    source = load_auxiliary(shared / folder)
    graph = capture(source.model, source.max_length)
    program = assign_layers(canonicalise(import_graph(graph)))
    ids = token_ids(2, 19)
    with torch.no_grad():
        logits = forward(program, load(program, graph.tensors), resolve_inputs(ids))
        assert relative(logits, source.model.double()(ids).logits) < 1e-5
