"""Vectors cut into heads and put together again, where something other than attention reads them."""

from __future__ import annotations

import torch
from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph import CapturedGraph
from tintc.frontend.layouts import vector_layout
from tintc.frontend.patterns import single_sources
from tintc.frontend.regions import moves, push
from tintc.frontend.rules.base import NOT_MINE, Fail, Match
from tintc.frontend.rules.scores import find_scores
from tintc.frontend.runs import runs_of
from tintc.ir.auxiliary import Select
from tintc.ir.core import Value, tokens


class HeadsRule:
    """``view``, ``transpose``, ``split`` ... between one vector per token and its heads -> `aux.select`.

    What the operations do is found by pushing distinct numbers through them.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        layout = vector_layout(graph, node)
        if layout is None or node not in graph.live or not moves(node):
            return NOT_MINE
        chain = single_sources(graph, node, moves)
        vectors = [(at, found) for at in chain if (found := vector_layout(graph, at)) is not None]
        cuts = len(layout.sizes) > 1 or any(len(found.sizes) > 1 for _, found in vectors)
        if not vectors or not cuts or find_scores(graph, chain[-1]) is not None:
            return NOT_MINE
        source, width = vectors[-1][0], vectors[-1][1].width
        columns = _columns(graph, node, source)
        if columns is None:
            return Fail("it moves numbers from one token to another")

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            if columns == list(range(width)):
                return values[0]
            return builder.emit(Select, node, values, tokens(len(columns)), "part", columns=runs_of(columns))

        return Match((source,), build)


def _columns(graph: CapturedGraph, node: Node, source: Node) -> list[int] | None:
    """Column of the source's vector for each coordinate of the node's; None if tokens mix."""
    batch, length = 2, 3
    before, after = vector_layout(graph, source), vector_layout(graph, node)
    shape = graph.shape(source, batch, length)
    assert before is not None and after is not None and shape is not None
    width = before.width
    numbers = torch.arange(batch * length * width, dtype=torch.float64).view(batch, length, width)
    numbers = numbers.to(graph.input_ids.meta["val"].device)
    found = after.take(push(graph, node, {source: before.place(numbers, shape)}, batch, length), batch, length)
    columns = found[0, 0].long()
    if not torch.equal(found, numbers[..., columns]):
        return None
    return columns.tolist()
