"""Rows of tables: token embeddings, learned position embeddings, and any other numbers of a token's position."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.node_queries import constant_name, peel, rows_width
from tintc.frontend.graph.obstacle_words import POSITIONS, TABLE
from tintc.frontend.rule import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Embedding, PositionEmbedding
from tintc.ir.core import Value, tokens

SIZES = ((2, 5), (3, 9), (1, 16))
"""Batch sizes and lengths at which looked-up positions are read."""
TOLERANCE = 1e-12
"""Relative; a table of fp32 numbers is the same bits at every length."""


class EmbeddingRule:
    """``embedding(table, input_ids)`` -> `aux.embedding`."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if opname(node) != "embedding":
            return NOT_MINE
        table, ids = node.args[:2]
        assert isinstance(ids, Node)
        if ids not in graph.live:
            return NOT_MINE
        name = graph.tensor_name(table)
        if name is None:
            return Fail("the embedding table is computed, it must be a parameter")
        if peel(graph, ids) is not graph.input_ids:
            why = "rows are looked up by something computed from the token ids, not by the token ids"
            return Fail(why, obstacle=POSITIONS)

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            width = graph.tensors[name].shape[1]
            return builder.emit(Embedding, node, (), tokens(width), table=builder.parameter(name))

        return Match((), build)


class PositionEmbeddingRule:
    """``embedding(table, positions + offset)`` -> `aux.position_embedding`, positions recognised by evaluation.

    The table is a parameter or buffer.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if opname(node) != "embedding":
            return NOT_MINE
        table, indices = node.args[:2]
        assert isinstance(indices, Node)
        name = graph.tensor_name(table)
        if indices in graph.live or name is None:
            return NOT_MINE
        offset = _offset(graph, indices)
        if offset is None:
            return Fail("positions are not 0, 1, 2, ... plus a constant", obstacle=TABLE)

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            kind = tokens(graph.tensors[name].shape[1])
            return builder.emit(PositionEmbedding, node, (), kind, table=builder.parameter(name), offset=offset)

        return Match((), build)


class PositionTableRule:
    """One vector per position that no token has a part in -> `aux.position_embedding` of its values at all positions.

    It may be made in any way: a sinusoidal table, slices of a parameter. A text of some length must find the first rows
    of the table of the longest.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if node in graph.live or rows_width(graph, node) is None:
            return NOT_MINE
        table = _table(graph, node)
        if table is None:
            return Fail("it depends on the length of the text, and not on a token's position alone")

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            name = builder.parameter(constant_name(graph, node, "positions", table))
            return builder.emit(PositionEmbedding, node, (), tokens(table.shape[1]), "positions", table=name)

        return Match((), build)


def _offset(graph: CapturedGraph, indices: Node) -> int | None:
    """Return the constant c if the indices are ``arange(T) + c`` in every row."""
    offsets: set[int] = set()
    for batch, length in SIZES:
        value = graph.evaluate(indices, batch, length)
        if value.dim() > 2 or value.shape[-1] != length:
            return None
        difference = value - torch.arange(length, device=value.device)
        if difference.min() != difference.max():
            return None
        offsets.add(int(difference.max()))
    if len(offsets) > 1:
        return None
    return offsets.pop()


def _table(graph: CapturedGraph, node: Node) -> Tensor | None:
    """Return the vectors ``[max_length, W]`` of all positions; None if they are others in shorter texts."""
    limit = graph.max_length
    table = graph.evaluate(node, 1, limit).reshape(limit, -1)
    for batch, length in ((2, min(5, limit)), (3, min(9, limit))):
        rows = graph.evaluate(node, batch, length).reshape(-1, length, table.shape[1])
        if not torch.allclose(rows, table[:length].expand_as(rows), rtol=TOLERANCE, atol=TOLERANCE):
            return None
    return table
