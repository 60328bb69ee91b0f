"""Numbers that depend on a token's position alone, however they are made: sinusoidal tables, slices of a parameter."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.node_queries import constant_name, rows_width
from tintc.frontend.rules.base import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import PositionEmbedding
from tintc.ir.core import Value, tokens

TOLERANCE = 1e-12
"""Relative; a table of fp32 numbers is the same bits at every length."""


class PositionTableRule:
    """One vector per position that no token has a part in -> `aux.position_embedding` of its values at all positions.

    A text of some length must find the first rows of the table of the longest.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if node in graph.live or rows_width(graph, node) is None or _is_look_up(graph, node):
            return NOT_MINE
        table = _table(graph, node)
        if table is None:
            return Fail("it depends on the length of the text, and not on a token's position alone")

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            name = builder.parameter(constant_name(graph, node, "positions", table))
            return builder.emit(PositionEmbedding, node, (), tokens(table.shape[1]), "positions", table=name)

        return Match((), build)


def _is_look_up(graph: CapturedGraph, node: Node) -> bool:
    """Whether it is an embedding of positions in a table that the model keeps."""
    return opname(node) == "embedding" and graph.tensor_name(node.args[0]) is not None


def _table(graph: CapturedGraph, node: Node) -> Tensor | None:
    """The vectors ``[max_length, W]`` of all positions; None if they are others in shorter texts."""
    limit = graph.max_length
    table = graph.evaluate(node, 1, limit).reshape(limit, -1)
    for batch, length in ((2, min(5, limit)), (3, min(9, limit))):
        rows = graph.evaluate(node, batch, length).reshape(-1, length, table.shape[1])
        if not torch.allclose(rows, table[:length].expand_as(rows), rtol=TOLERANCE, atol=TOLERANCE):
            return None
    return table
