"""Masks of long texts: parts of them are what a whole evaluation gives, late changes show, memory is linear. Exact."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from command import finished, forked
from tiny_models import build, llama
from torch import Tensor, nn
from transformers import masking_utils

from tintc.errors import UnsupportedModelError
from tintc.frontend.attention.mask_entries import entries_at
from tintc.frontend.attention.scores import find_scores
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tools.sweep.tiny import tiny_model

SIZES: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 23,
}


PARTS: dict[str, dict[str, int]] = {
    "llama": {"num_hidden_layers": 1},
    "gemma2": {},
    "bloom": {"n_layer": 1},
    "mpt": {"n_layers": 1},
    "gpt_neo": {},
    "openai-gpt": {"n_layer": 1},
    "gptj": {"n_layer": 1},
}
"""Types, and that they have one layer where all layers have the same mask."""


@pytest.mark.parametrize("kind", PARTS)
def test_a_part_is_what_the_whole_has_there(kind: str) -> None:
    graph = capture(tiny_model(kind, **PARTS[kind]))
    rows, columns, length = torch.tensor([1, 4, 18]), torch.tensor([0, 4, 5, 9, 18]), 19
    masks = {mask.node: mask for node in graph.live for found in [find_scores(graph, node)] for mask in _masks(found)}
    assert masks
    for mask in masks:
        whole, part = graph.evaluate(mask, 1, length), entries_at(graph, mask, length, rows, columns)
        for dim, places in ((-2, rows), (-1, columns)):
            whole = whole.index_select(dim, places) if whole.shape[dim] == length else whole
        assert torch.equal(part, whole)


def _masks(found: Any) -> tuple[Any, ...]:
    return getattr(found, "masks", ())


class Triangles(nn.Module):
    """Attention's place is taken by what makes its mask in code that people write themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.config = llama(n_layers=1).config
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("table", torch.ones(64, 64, dtype=torch.bool).tril()[None, None])

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        square = torch.arange(length * 1.0)[:, None] * torch.arange(length * 1.0)
        near = square.tril(1).triu(-5).view(1, 1, length, length)
        table = self.table[:, :, :length, :length]  # pyright: ignore[reportIndexIssue]
        mask = torch.where(table & (near > 3), near.square(), -1.0)
        return self.weight * (mask + input_ids[:, None, None])


def test_parts_of_triangles_and_tables() -> None:
    graph = capture(Triangles())
    rows, columns = torch.tensor([0, 7, 8, 30]), torch.tensor([2, 3, 8, 9, 29])
    (mask,) = [node for node in graph.module.graph.nodes if node.name == "where"]
    whole = graph.evaluate(mask, 1, 31)
    assert torch.equal(entries_at(graph, mask, 31, rows, columns), whole[..., rows, :][..., columns])
    assert whole.unique().numel() > 5


def import_long(model: Any, length: int) -> list[Any]:
    program = import_graph(capture(model, length))
    return [op for op in program.ops if op.opname == "aux.attention"]


def test_windows_longer_than_what_is_checked_whole() -> None:
    long = build("mistral", **SIZES, max_position_embeddings=8192, sliding_window=5001)
    assert [op.window for op in import_long(long, 6000)] == [5001]
    assert [op.window for op in import_long(long, 5000)] == [0]


Overlay = Callable[[Any, Any, Any, Any], Any]
LATE: dict[str, Overlay] = {
    "from a late query on": lambda b, h, q, k: (q < 5500) | (k > 3),
    "for some late queries": lambda b, h, q, k: (q < 4100) | (q > 4150) | (k < 9) | (k > q - 4),
    "a key that nobody sees": lambda b, h, q, k: (k != 4711) | (q == k),
    "windows of late queries": lambda b, h, q, k: (q < 3000) | (q > 3010) | (q - k < 2),
    "pieces": lambda b, h, q, k: q // 2500 == k // 2500,
    "the next token, late": lambda b, h, q, k: k >= 0,
}


def changed(kind: str) -> Overlay:
    """Return a causal mask that is another one late in a text."""

    def seen(b: Any, h: Any, q: Any, k: Any) -> Any:
        if kind == "the next token, late":
            return (k <= q) | ((q == 4000) & (k == 4001))
        return (k <= q) & LATE[kind](b, h, q, k)

    return seen


class Written(nn.Module):
    """A layer of attention and its mask, which is quick to trace."""

    def __init__(self, seen: Overlay) -> None:
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=8192)
        self.embed, self.qkv, self.head = nn.Embedding(23, 16), nn.Linear(16, 48), nn.Linear(16, 23)
        self.seen = seen

    def forward(self, input_ids: Tensor) -> Tensor:
        x, places = self.embed(input_ids), torch.arange(input_ids.shape[1])
        q, k, v = (part[:, None] for part in self.qkv(x).chunk(3, -1))
        mask = self.seen(None, None, places[:, None], places)
        return self.head(x + F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, 0])


@pytest.mark.parametrize("kind", LATE)
def test_masks_that_change_late_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match="attention sees"):
        import_long(Written(changed(kind)), 6000)


def test_masks_of_transformers_that_change_late_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the mask that the others are made of is taken."""
    assert [op.window for op in import_long(Written(lambda b, h, q, k: k <= q), 6000)] == [0]
    monkeypatch.setattr(masking_utils, "causal_mask_function", changed("for some late queries"))
    with pytest.raises(UnsupportedModelError, match="attention sees"):
        import_long(build("llama", **SIZES, max_position_embeddings=8192), 6000)


LONG: dict[str, dict[str, Any]] = {
    "llama": SIZES | {"max_position_embeddings": 32768},
    "bloom": {"attention": "eager", "n_layer": 1, "hidden_size": 16, "n_head": 2, "vocab_size": 23},
}


def growth(model: Any) -> None:
    """Print by how many KiB the memory of this process grows while masks of 24,000 tokens are read.

    Free memory is given back before, in which they would else find room unseen.
    """
    import_graph(capture(model, 64))
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak()
    import_graph(capture(model, 24000))
    print(peak() - before)


def peak() -> int:
    (line,) = re.findall(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(line)


@pytest.mark.parametrize(
    "kind", [kind if kind != "bloom" else pytest.param(kind, marks=pytest.mark.slow) for kind in LONG]
)
def test_memory_grows_with_the_length_and_not_its_square(kind: str) -> None:
    """One mask of 24,000 tokens, a byte an entry, would be 550 MiB."""
    model = build(kind, **LONG[kind])
    found = finished(forked(lambda: growth(model)))
    assert found.code == 0, found.err
    assert int(found.out) << 10 < 300 << 20, found.out
