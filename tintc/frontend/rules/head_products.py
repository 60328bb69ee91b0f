"""Linear layers of their own for every head, of which a recurrence's matrix is made, as one `aux.linear`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.layouts import vector_layout
from tintc.frontend.graph.node_queries import constant_name
from tintc.frontend.graph.regions import moves, push
from tintc.frontend.mixers.pointwise import crosses
from tintc.frontend.rule import NOT_MINE, Fail, Match
from tintc.frontend.rules.mixers import reached
from tintc.ir.auxiliary import Linear
from tintc.ir.core import Value, tokens

PRODUCTS = frozenset({"matmul", "bmm"})
MATRIX = frozenset({0, 1, 3, 4})
"""Operands of a recurrence of which its matrix is made: queries, keys, log decays and strengths."""


class HeadProductRule:
    """``matmul(W [H, 1, o, i], x [H, B, i, T])``, and whatever else multiplies each head with a matrix of its own.

    It becomes one layer whose matrix has those of the heads on its diagonal. Its zeros must not descend: so what it
    makes may only be what is a constant of the backward pass, queries, keys, decays and strengths of a recurrence.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if opname(node) not in PRODUCTS or node not in graph.live:
            return NOT_MINE
        live = graph.live_inputs(node)
        (weight,) = [value for value in node.all_input_nodes if value not in live] or [None]
        if len(live) != 1 or weight not in graph.weighted:
            return NOT_MINE
        matrix = _matrix(graph, node, live[0])
        if matrix is None:
            return NOT_MINE
        if not _makes_matrix(graph, node):
            return Fail(
                "every head has a linear layer of its own, which is supported only where it makes queries, keys, "
                "decays or strengths of a recurrence"
            )
        name = constant_name(graph, weight, "heads", matrix)

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            return builder.emit(Linear, node, values, tokens(len(matrix)), weight=builder.parameter(name))

        return Match((live[0],), build)


def _makes_matrix(graph: CapturedGraph, node: Node) -> bool:
    """Return True if a value reaches what recurrences' matrices are made of, and nothing else."""

    def passes(user: Node) -> bool:
        return crosses(graph, user) or moves(user) or opname(user) in PRODUCTS

    ends = reached(graph, node, MATRIX, passes)
    return bool(ends) and all(ends)


def _matrix(graph: CapturedGraph, node: Node, source: Node) -> Tensor | None:
    """Return the matrix ``[H o, H i]`` by which a node multiplies the vectors of its source, head by head; None if that
    is not what it does."""
    layout = vector_layout(graph, node)
    before = vector_layout(graph, source)
    if layout is None or before is None or len(before.sizes) < 2 or layout.sizes[:1] != before.sizes[:1]:
        return None
    heads = before.sizes[0]

    def product(rows: Tensor) -> Tensor:
        shape = graph.shape(source, 1, len(rows))
        assert shape is not None
        values = {source: before.place(rows[None].to(graph.input_ids.meta["val"].device), shape)}
        return layout.take(push(graph, node, values, 1, len(rows)), 1, len(rows))[0].cpu()

    columns = torch.eye(before.width // heads, dtype=torch.float64).repeat(1, heads)
    parts = product(columns).unflatten(-1, (heads, -1)).movedim(1, 0)
    matrix = torch.block_diag(*(part.T for part in parts))
    rows = torch.randn(5, before.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if not torch.allclose(product(rows), rows @ matrix.T, rtol=0, atol=1e-9 * float(matrix.abs().max())):
        return None
    return matrix
