"""Positions and masks of one's own in an exported graph: they do what they do in the model.

fp64 beside the model in fp32 (where padding does not overflow in its own casts); 1e-5 of the logits.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import relative, token_ids
from transformers import PreTrainedModel

from tintc.frontend.graph.trace_model import capture
from tintc.reference.captured import run_nodes
from tintc.reference.placed import masked_scores, moved_positions
from tools.sweep.tiny import tiny_model

POSITIONS = torch.tensor([0, 1, 2, 0, 1, 2, 3, 7, 8, 9])


SMALLER: dict[str, dict[str, Any]] = {
    **{name: {"num_hidden_layers": 1} for name in ("llama", "opt", "ministral3")},
    **{name: {"n_layer": 1} for name in ("gptj", "ctrl")},
    **{
        name: {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}
        for name in ("flint", "granite_swa", "gpt_oss")
    },
}
"""One layer, with a window where the type has any; GPT-Neo keeps two, of which one has none."""


def tiny(model_type: str) -> PreTrainedModel:
    """Return a model of few layers."""
    return tiny_model(model_type, **SMALLER.get(model_type, {}))


@pytest.mark.parametrize("model_type", ["llama", "opt", "gptj", "ctrl", "ministral3"])
def test_rotary_learned_and_computed_positions_move(model_type: str) -> None:
    model, ids = tiny(model_type), token_ids(1, len(POSITIONS))
    graph = capture(model)
    with torch.no_grad():
        unpacked = {"attention_mask": torch.ones_like(ids), "use_cache": False}  # else a gap begins another text
        right = model(ids, position_ids=POSITIONS[None], **unpacked).logits
        (found,) = run_nodes(graph, ids, (graph.logits,), overrides=moved_positions(graph, POSITIONS))
    assert relative(found, right) < 1e-5


@pytest.mark.parametrize("model_type", ["llama", "gpt_neo", "flint", "granite_swa", "gpt_oss"])
def test_masks_hide_tokens_from_sinks_too(model_type: str) -> None:
    """And leave routers alone, whose softmax is over experts."""
    model, ids = tiny(model_type), token_ids(1, len(POSITIONS))
    graph = capture(model)
    padding, places = torch.arange(len(POSITIONS)) >= 3, (torch.arange(len(POSITIONS)) - 3).clamp(min=0)
    overrides = {**masked_scores(graph, {}, padding.expand(len(padding), -1)), **moved_positions(graph, places)}
    with torch.no_grad():
        right = model(ids, attention_mask=padding[None].long(), position_ids=places[None], use_cache=False).logits
        (found,) = run_nodes(graph, ids, (graph.logits,), overrides=overrides)
    assert relative(found[:, 3:], right[:, 3:]) < 1e-5
