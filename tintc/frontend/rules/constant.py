"""A value plus or times a vector that is the same at every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.layouts import VectorLayout, vector_layout
from tintc.frontend.graph.node_queries import peel, scalar, sizes
from tintc.frontend.rules.base import NOT_MINE, Fail, Match
from tintc.frontend.rules.layer_norm import LayerNormRule
from tintc.frontend.rules.linear import LinearRule
from tintc.frontend.rules.rms_norm import RMSNormRule
from tintc.ir.auxiliary import Add, Constant, Multiply
from tintc.ir.auxiliary.base import AuxOp
from tintc.ir.core import Value, tokens

KINDS: dict[str, type[AuxOp]] = {"add": Add, "mul": Multiply}


class ConstantRule:
    """``x + c``, ``x * c`` and the same turned round -> `aux.constant` with `aux.add` or `aux.multiply`.

    c is made of parameters and has the same numbers at every token: an initial state, a bias that the coordinates of a
    head share, weights of a residual connection. It belongs to no group of parameters that descend; what does, a bias
    of a linear layer (`LinearRule`'s), a gain of a norm (`RMSNormRule`'s) or its bias, is not taken.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        layout = vector_layout(graph, node)
        if opname(node) not in KINDS or node.kwargs or layout is None or node not in graph.live:
            return NOT_MINE
        a, b = node.args[:2]
        x, constant = (a, b) if isinstance(a, Node) and a in graph.live else (b, a)
        if not isinstance(x, Node) or not isinstance(constant, Node) or constant not in graph.weighted:
            return NOT_MINE
        if vector_layout(graph, x) != layout or scalar(graph, constant) is not None:
            return NOT_MINE
        if any(rule.match(graph, node) is not NOT_MINE for rule in (LinearRule(), RMSNormRule())):
            return NOT_MINE
        norms = (LayerNormRule(), RMSNormRule())
        if opname(node) == "add" and any(rule.match(graph, peel(graph, x)) is not NOT_MINE for rule in norms):
            return Fail("a vector is added to a norm written out, where biases are not read", inputs=(x,))
        row = _row(graph, constant, node, layout)
        if row is None:
            return Fail("one operand is made of parameters and not the same vector at every token", inputs=(x,))
        table = graph.derive_constant("vector", row[None])

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            kind = tokens(layout.width)
            added = builder.emit(Constant, node, (), kind, "constant", table=builder.parameter(table))
            return builder.emit(KINDS[opname(node)], node, (*values, added), kind, opname(node))

        return Match((x,), build)


def _row(graph: CapturedGraph, constant: Any, node: Node, layout: VectorLayout) -> Tensor | None:
    """The vector ``[W]`` that the constant is at every token of a node with this layout."""
    found = []
    for batch, length in sizes(graph):
        shape = graph.shape(node, batch, length)
        assert shape is not None
        value = layout.take(graph.evaluate(constant, batch, length).expand(shape), batch, length)
        found.append(value.reshape(-1, layout.width))
    rows = torch.cat(found)
    return rows[0].clone() if bool((rows == rows[0]).all()) else None
