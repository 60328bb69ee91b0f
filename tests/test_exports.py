"""Tests share an export only between models that are traced alike."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exports import KEPT, shared
from tiny_models import gpt2, llama, relative, token_ids
from transformers import masking_utils
from transformers.models.gpt2 import modeling_gpt2

from tintc.frontend.graph.trace_model import capture
from tintc.reference.captured import run_captured


def traces(*models: Any, between: Callable[[], object] = lambda: None) -> int:
    """Return how many of them would be traced, one after the other, if nothing had been."""
    traced: list[Any] = []

    def export(model: Any, _: torch.Tensor) -> Any:
        traced.append(model)
        return SimpleNamespace(graph=0, graph_module=0, graph_signature=0, constants=0)

    kept = dict(KEPT)
    KEPT.clear()
    try:
        for model in models:
            shared(export)(model, token_ids(2, 7))
            between()
    finally:
        KEPT.clear()
        KEPT.update(kept)
    return len(traced)


def test_weights_are_each_model_s_own() -> None:
    """fp64, 1e-12 of the largest logit."""
    first, second = gpt2(n_layers=1).double(), gpt2(n_layers=1, seed=1).double()
    assert traces(first, second) == 1
    ids = token_ids(1, 6)
    for model in (first, second):
        assert relative(run_captured(capture(model), ids), model(ids).logits) < 1e-12
    assert relative(first(ids).logits, second(ids).logits) > 0.1


def untied(model: Any) -> None:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())


def with_another_scale(model: Any) -> None:
    model.transformer.h[0].attn.scaling = 0.5


def with_another_table(model: Any) -> None:
    model.transformer.h[0].register_buffer("table", torch.ones(3))


def with_a_hook(model: Any) -> None:
    model.transformer.h[0].register_forward_hook(lambda *_: None)


def with_another_forward(model: Any) -> None:
    model.transformer.h[0].mlp.forward = lambda x: 2 * x


CHANGES: list[Callable[[Any], object]] = [
    untied,
    with_another_scale,
    with_another_table,
    with_a_hook,
    with_another_forward,
    lambda model: model.bfloat16(),
    lambda model: model.set_attn_implementation("eager"),
    lambda model: setattr(model.config, "activation_function", "relu"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_tracing_reads_tells_models_apart(change: Callable[[Any], object]) -> None:
    changed = gpt2(n_layers=1)
    change(changed)
    assert traces(gpt2(n_layers=1), changed) == 2


@pytest.mark.parametrize(
    ("owner", "name"), [(masking_utils, "causal_mask_function"), (modeling_gpt2.GPT2MLP, "forward")]
)
def test_patched_code_is_traced_anew(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, original = gpt2(n_layers=1), getattr(owner, name)
    assert traces(model, model) == 1

    def patch() -> None:
        monkeypatch.setattr(owner, name, lambda *given: original(*given))

    assert traces(model, model, between=patch) == 2


def test_code_of_a_test_is_always_traced() -> None:
    class Own(type(llama(n_layers=1))):
        pass

    model = Own(llama(n_layers=1).config)
    assert traces(model, model) == 2
