"""Token embeddings and learned position embeddings."""

from __future__ import annotations

import torch
from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.node_queries import peel
from tintc.frontend.rules.base import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Embedding, PositionEmbedding
from tintc.ir.core import Value, tokens

LENGTHS = ((2, 5), (3, 9), (1, 16))


class EmbeddingRule:
    """``embedding(table, input_ids)`` -> `aux.embedding`."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if opname(node) != "embedding":
            return NOT_MINE
        table, ids = node.args[0], node.args[1]
        assert isinstance(ids, Node)
        if ids not in graph.live:
            return NOT_MINE
        name = graph.tensor_name(table)
        if name is None:
            return Fail("the embedding table is computed, it must be a parameter")
        if peel(graph, ids) is not graph.input_ids:
            return Fail("rows are looked up by something computed from the token ids, not by the token ids")

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            width = graph.tensors[name].shape[1]
            return builder.emit(Embedding, node, (), tokens(width), table=builder.parameter(name))

        return Match((), build)


class PositionEmbeddingRule:
    """``embedding(table, positions + offset)`` -> `aux.position_embedding`, positions recognised by evaluation."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if opname(node) != "embedding":
            return NOT_MINE
        table, indices = node.args[0], node.args[1]
        assert isinstance(indices, Node)
        if indices in graph.live:
            return NOT_MINE
        name = graph.tensor_name(table)
        offset = _offset(graph, indices)
        if name is None or offset is None:
            return Fail("positions are not 0, 1, 2, ... plus a constant, or their table is computed")

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            width = graph.tensors[name].shape[1]
            table = builder.parameter(name)
            return builder.emit(PositionEmbedding, node, (), tokens(width), table=table, offset=offset)

        return Match((), build)


def _offset(graph: CapturedGraph, indices: Node) -> int | None:
    """The constant c if the indices are ``arange(T) + c`` in every row."""
    offsets: set[int] = set()
    for batch, length in LENGTHS:
        value = graph.evaluate(indices, batch, length)
        expected = torch.arange(length, device=value.device)
        if value.dim() > 2 or value.shape[-1] != length:
            return None
        difference = value - expected
        if difference.min() != difference.max():
            return None
        offsets.add(int(difference.max()))
    return offsets.pop() if len(offsets) == 1 else None
