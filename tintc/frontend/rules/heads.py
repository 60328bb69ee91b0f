"""Vectors cut into heads and put together again, where something other than attention reads them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.attention.scores import find_scores
from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.layouts import vector_layout
from tintc.frontend.graph.node_queries import single_sources
from tintc.frontend.graph.regions import leaves, moves, push
from tintc.frontend.rules.base import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Concat, Select
from tintc.ir.columns import runs_of
from tintc.ir.core import Value, tokens


class HeadsRule:
    """``view``, ``transpose``, ``split``, ``cat`` ... between vectors per token and their heads -> `aux.select`.

    What the operations do is found by pushing distinct numbers through them.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        layout = vector_layout(graph, node)
        if layout is None or node not in graph.live or not moves(node):
            return NOT_MINE
        chain = single_sources(graph, node, moves)
        vectors = [(at, found) for at in chain if (found := vector_layout(graph, at)) is not None]
        if chain and find_scores(graph, chain[-1]) is not None:
            return NOT_MINE
        if not vectors:
            return self._several(graph, node)
        if len(layout.sizes) == 1 and all(len(found.sizes) == 1 for _, found in vectors):
            return NOT_MINE
        return self._cut(graph, node, (vectors[-1][0],))

    def _several(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        """Values side by side."""
        sources = tuple(leaves(graph, node, moves))
        if len(sources) < 2 or any(vector_layout(graph, source) is None for source in sources):
            return NOT_MINE
        return self._cut(graph, node, sources)

    def _cut(self, graph: CapturedGraph, node: Node, sources: tuple[Node, ...]) -> Match | Fail:
        columns = _columns(graph, node, sources)
        if columns is None:
            return Fail("it moves numbers from one token to another")

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            whole = values[0]
            if len(values) > 1:
                together = tokens(sum(value.type.width for value in values))
                whole = builder.emit(Concat, node, values, together, "together")
            if columns == list(range(whole.type.width)):
                return whole
            return builder.emit(Select, node, (whole,), tokens(len(columns)), "part", columns=runs_of(columns))

        return Match(sources, build)


def _columns(graph: CapturedGraph, node: Node, sources: tuple[Node, ...]) -> list[int] | None:
    """Column of the sources' vectors, side by side, for each coordinate of the node's; None if tokens mix."""
    batch, length = 2, 3
    layouts = [vector_layout(graph, source) for source in sources]
    widths = [layout.width for layout in layouts if layout is not None]
    numbers = torch.arange(batch * length * sum(widths), dtype=torch.float64).view(batch, length, -1)
    numbers = numbers.to(graph.input_ids.meta["val"].device)
    placed: dict[Node, Tensor] = {}
    for source, layout, part in zip(sources, layouts, numbers.split(widths, -1), strict=True):
        shape = graph.shape(source, batch, length)
        assert layout is not None and shape is not None
        placed[source] = layout.place(part, shape)
    after = vector_layout(graph, node)
    assert after is not None
    found = after.take(push(graph, node, placed, batch, length), batch, length)
    columns = found[0, 0].long()
    if not torch.equal(found, numbers[..., columns]):
        return None
    return columns.tolist()
