"""Which rules take one node, and that nothing but their order decides; the same program for other spellings."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import cache
from itertools import combinations
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph, recognise
from tintc.frontend.rule import NOT_MINE, Rule
from tintc.frontend.rules import RULES, default_rules
from tintc.ir.text import print_program
from tintc.lowering.passes.assign_layers import assign_layers
from tintc.lowering.passes.canonicalise import canonicalise
from tools.sweep.tiny import tiny_config, tiny_model

ONE: dict[str, Any] = {"num_hidden_layers": 1}
TYPES: dict[str, dict[str, Any]] = {
    "falcon": ONE | {"new_decoder_architecture": True, "num_kv_heads": 1},
    "gemma": ONE,
    "gpt2": ONE,
    "granite": ONE | {"residual_multiplier": 0.2, "logits_scaling": 4.0},
    "cohere": ONE,
    "olmo": ONE | {"clip_qkv": 0.5},
    "qwen2_moe": ONE | {"num_experts": 4, "num_experts_per_tok": 2},
}
OVERLAPS = {
    ("AttentionRule", "HeadsRule"),  # heads that attention merges are its result
    ("ActivationRule", "MultiplyRule"),  # x * sigmoid(1.7 x) is an activation
    ("ActivationRule", "SwishRule"),  # silu and quick_gelu are x * sigmoid(a x)
    ("SwishRule", "MultiplyRule"),
    ("ActivationRule", "ShiftedProductRule"),  # gelu_new is (1 + tanh(...)) * x / 2
    ("ShiftedProductRule", "MultiplyRule"),  # x + c alone has no place
    ("SharedFactorRule", "MultiplyRule"),  # refuses vectors of two widths
    ("ActivationRule", "ScaleRule"),  # 0.5 * x * (1 + tanh(...)) too
    ("WrittenNormRule", "ConstantRule"),  # gain * x / sqrt(...): the gain descends
    ("WrittenNormRule", "MultiplyRule"),  # x * rsqrt(mean(x^2) + eps)
    ("LinearRule", "ConstantRule"),  # x W^T + b: the bias descends
    ("LinearRule", "AddRule"),
    ("ConstantRule", "AddRule"),
    ("ConstantRule", "MultiplyRule"),
    ("NormBiasRule", "ConstantRule"),  # is refused, where a constant would be taken
    ("NormBiasRule", "AddRule"),
    ("HeadsRule", "SelectRule"),  # refuses what it cannot cut
}
"""Pairs of rules that recognise one node; the first of a pair is tried first. `UnknownFunctionRule` comes after all."""


@cache
def graph(name: str) -> CapturedGraph:
    return capture(tiny_model(name, **TYPES[name]), 32)


def text(captured: CapturedGraph, rules: Any = None) -> str:
    return print_program(assign_layers(canonicalise(import_graph(captured, rules))))


@cache
def overlaps(name: str) -> set[tuple[str, str]]:
    """Return the pairs of rules, in order, that recognise one node of a program."""
    captured = graph(name)
    pairs: set[tuple[str, str]] = set()
    for node in recognise(captured).values:
        names = [type(rule).__name__ for rule in default_rules() if rule.match(captured, node) is not NOT_MINE]
        pairs.update(combinations([name for name in names if name != "UnknownFunctionRule"], 2))
    return pairs


@pytest.mark.parametrize("name", TYPES)
def test_rules_that_recognise_one_node_are_listed(name: str) -> None:
    """Each other rule keeps its own territory: whoever writes a rule that does not is told here."""
    assert overlaps(name) <= OVERLAPS


def test_the_list_follows_the_order_and_is_used() -> None:
    order = [rule.__name__ for rule in RULES]
    assert all(order.index(first) < order.index(second) for first, second in OVERLAPS)
    assert order[-1] == "UnknownFunctionRule"
    assert len(set().union(*map(overlaps, TYPES))) >= 5


def shuffled(seed: int) -> Iterable[Rule]:
    """Yield the rules in a random order that keeps that of every listed pair."""
    waiting = default_rules()
    generator = random.Random(seed)
    while waiting:
        names = {type(rule).__name__ for rule in waiting}
        blocked = {second for first, second in OVERLAPS if first in names}
        if len(waiting) > 1:
            blocked.add("UnknownFunctionRule")
        free = [rule for rule in waiting if type(rule).__name__ not in blocked]
        rule = generator.choice(free)
        waiting.remove(rule)
        yield rule


@pytest.mark.parametrize("name", TYPES)
def test_the_order_of_other_rules_means_nothing(name: str) -> None:
    right = text(graph(name))
    for seed in range(2):
        assert text(graph(name), list(shuffled(seed))) == right


@pytest.mark.parametrize(
    ("name", "attention", "dtype"),
    [
        ("gemma", "eager", torch.float32),
        ("granite", "eager", torch.bfloat16),
        pytest.param("cohere", "eager", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("granite", "sdpa", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_captures_that_differ_only_in_spelling(name: str, attention: str, dtype: torch.dtype) -> None:
    """Gemma's embedding scale is a buffer, which a model in bf16 rounds: another number, and so another program."""
    config = tiny_config(name, **TYPES[name])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype).eval()
    assert text(capture(model, 32)) == text(graph(name))
