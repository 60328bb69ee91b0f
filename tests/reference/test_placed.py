"""Positions of one's own in an exported graph: what depends on them goes where they say. fp64, 1e-6 of the logits."""

from __future__ import annotations

import pytest
import torch
from tiny_models import relative, token_ids

from tintc.frontend.capture import capture
from tintc.reference.captured import run_nodes
from tintc.reference.placed import moved_positions
from tintc.reference.tiny import tiny_model

POSITIONS = torch.tensor([0, 1, 2, 0, 1, 2, 3, 7, 8, 9])


@pytest.mark.parametrize("model_type", ["llama", "opt", "gptj", "ctrl"])
def test_rotary_learned_and_computed_positions_move(model_type: str) -> None:
    model, ids = tiny_model(model_type).double(), token_ids(1, len(POSITIONS))
    graph = capture(model)
    with torch.no_grad():
        unpacked = {"attention_mask": torch.ones_like(ids), "use_cache": False}  # else a gap begins another text
        right = model(ids, position_ids=POSITIONS[None], **unpacked).logits
        (found,) = run_nodes(graph, ids, (graph.logits,), overrides=moved_positions(graph, POSITIONS))
    assert relative(found, right) < 1e-6
