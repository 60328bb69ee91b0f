"""Columns of vectors: heads cut out and put together again, and parts of a fused projection, as `aux.select`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.layouts import vector_layout
from tintc.frontend.graph.node_queries import argument, rows_width, single_sources
from tintc.frontend.graph.regions import leaves, moves, push
from tintc.frontend.rule import NOT_MINE, Fail, Match
from tintc.ir.core import Value

SPLITS = frozenset({"split", "split_with_sizes", "chunk"})
JOINS = frozenset({"cat", "concat", "concatenate"})
"""Operations that may put one value beside itself."""


class HeadsRule:
    """``view``, ``transpose``, ``split``, ``cat`` ... between vectors per token and their heads -> `aux.select`.

    What the operations do is read by pushing distinct numbers through them.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        layout = vector_layout(graph, node)
        if layout is None or node not in graph.live or not moves(node):
            return NOT_MINE
        layouts = {source: vector_layout(graph, source) for source in single_sources(graph, node, moves)}
        vectors = {source: its for source, its in layouts.items() if its is not None}
        if not vectors:
            return self._several(graph, node)
        rows = layout.is_rows and all(its.is_rows for its in vectors.values())
        if rows and opname(node) not in JOINS:
            return NOT_MINE
        *_, farthest = vectors
        return self._cut(graph, node, (farthest,))

    def _several(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        """Match values that the node puts side by side."""
        sources = tuple(leaves(graph, node, moves))
        if len(sources) < 2 or any(vector_layout(graph, source) is None for source in sources):
            return NOT_MINE
        return self._cut(graph, node, sources)

    def _cut(self, graph: CapturedGraph, node: Node, sources: tuple[Node, ...]) -> Match | Fail:
        columns = columns_of(graph, node, sources)
        if columns is None:
            return Fail("it moves numbers from one token to another")

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            whole = builder.concatenate(node, values, "together")
            return builder.select(node, whole, columns, "part")

        return Match(sources, build)


class SelectRule:
    """``slice`` of the last dimension, and one result of ``split`` or ``chunk`` along it -> `aux.select`."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if opname(node) == "slice":
            source = node.args[0]
            dim = argument(node, 1, 0)
            start = argument(node, 2, 0) or 0
            step = argument(node, 4, 1)
        elif opname(node) == "getitem" and isinstance(node.args[0], Node) and opname(node.args[0]) in SPLITS:
            split = node.args[0]
            source = split.args[0]
            dim = argument(split, 2, 0)
            start = _start(split, node)
            step = 1
        else:
            return NOT_MINE
        assert isinstance(source, Node)
        source_width = rows_width(graph, source)
        width = rows_width(graph, node)
        if source_width is None or width is None or dim not in (-1, len(source.meta["val"].shape) - 1):
            return Fail("only the last dimension of one vector per token can be cut into parts")
        first = int(start)
        if first < 0:
            first += source_width
        columns = range(first, first + step * width, step)

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            return builder.select(node, values[0], columns, "part")

        return Match((source,), build)


def _start(split: Node, node: Node) -> Any:
    """Return where one result of a split begins: the widths of those before it."""
    index = node.args[1]
    assert isinstance(index, int)
    return sum(value.shape[-1] for value in split.meta["val"][:index])


def columns_of(graph: CapturedGraph, node: Node, sources: tuple[Node, ...]) -> list[int] | None:
    """Return the column of the sources' vectors, side by side, for each of the node's; None if tokens mix."""
    batch = 2
    length = 3
    layouts = [vector_layout(graph, source) for source in sources]
    widths = [layout.width for layout in layouts if layout is not None]
    numbers = torch.arange(batch * length * sum(widths), dtype=torch.float64).view(batch, length, -1)
    numbers = numbers.to(graph.input_ids.meta["val"].device)
    placed: dict[Node, Tensor] = {}
    for source, layout, rows in zip(sources, layouts, numbers.split(widths, -1), strict=True):
        shape = graph.shape(source, batch, length)
        assert layout is not None and shape is not None
        placed[source] = layout.place(rows, shape)
    layout = vector_layout(graph, node)
    assert layout is not None
    moved = layout.take(push(graph, node, placed, batch, length), batch, length)
    columns = moved[0, 0].long()
    if not torch.equal(moved, numbers[..., columns]):
        return None
    return columns.tolist()
