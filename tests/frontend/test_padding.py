"""Positions and masks are inputs of the program: padding on either side changes nothing. fp64, 1e-12 and 1e-5."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_models import gpt2, llama, opt, relative, token_ids
from transformers import PreTrainedModel

from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.ir.auxiliary.interpreter import forward, load
from tintc.ir.inputs import resolve_inputs

LENGTHS = (11, 6, 9)


@pytest.mark.parametrize("make", [gpt2, opt, llama])
def test_padded_rows_equal_rows_alone(make: Callable[..., PreTrainedModel]) -> None:
    model = make(n_layers=1)
    graph = capture(model)
    program = import_graph(graph)
    tensors = load(program, graph.tensors)
    rows = [token_ids(1, length, seed=length)[0] for length in LENGTHS]
    alone = [forward(program, tensors, resolve_inputs(row[None]))[0] for row in rows]
    model.double()
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        inputs = resolve_inputs(ids, attention_mask=mask)
        logits = forward(program, tensors, inputs)
        with torch.no_grad():
            eager = model(ids, attention_mask=mask.long(), position_ids=inputs.position_ids).logits
        for i, expected in enumerate(alone):
            assert relative(logits[i][mask[i]], expected) < 1e-12
            assert relative(logits[i][mask[i]], eager[i][mask[i]]) < 1e-5


def padded(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask ``[B, T]`` of rows of several lengths."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = row, True
    return ids, mask
