"""The same program whatever order rules are tried in, and however a model's attention and dtype are spelled."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.frontend.rules import default_rules
from tintc.ir.text import print_program
from tintc.lowering.passes.assign_layers import assign_layers
from tintc.lowering.passes.canonicalise import canonicalise
from tools.sweep.tiny import tiny_config, tiny_model

TYPES = {"gemma": {}, "gpt2": {}, "granite": {"residual_multiplier": 0.2, "logits_scaling": 4.0}, "cohere": {}}


@cache
def graph(name: str) -> CapturedGraph:
    return capture(tiny_model(name, **TYPES[name]), 32)


def text(captured: CapturedGraph, rules: Any = None) -> str:
    return print_program(assign_layers(canonicalise(import_graph(captured, rules))))


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=3, deadline=None, derandomize=True)
@given(order=st.permutations(range(len(default_rules()))))
def test_rules_in_any_order(name: str, order: list[int]) -> None:
    rules = default_rules()
    assert text(graph(name), [rules[index] for index in order]) == text(graph(name))


@pytest.mark.parametrize(
    ("name", "attention", "dtype"),
    [("gemma", "eager", torch.float32), ("cohere", "eager", torch.bfloat16), ("granite", "sdpa", torch.bfloat16)],
)
def test_captures_that_differ_only_in_spelling(name: str, attention: str, dtype: torch.dtype) -> None:
    """Gemma's embedding scale is a buffer, which a model in bf16 rounds: another number, and so another program."""
    config = tiny_config(name, **TYPES[name])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype).eval()
    assert text(capture(model, 32)) == text(graph(name))
