"""Sums, differences and products of two values."""

from __future__ import annotations

from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.elementwise import factor_of, named_region
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.layouts import VectorLayout, vector_layout
from tintc.frontend.graph.node_queries import PROBES, parameter_vector, rows_width
from tintc.frontend.rules.base import NOT_MINE, Fail, Match
from tintc.frontend.rules.constant import ConstantRule
from tintc.frontend.rules.rms_norm import RMSNormRule
from tintc.ir.auxiliary import Add, Multiply, Scale
from tintc.ir.auxiliary.base import AuxOp
from tintc.ir.core import Type, Value, tokens


class _BinaryRule:
    """Two operands of one width, values of the tokens or of their positions, that do not make a known activation of one
    value."""

    operation: str
    op: type[AuxOp]

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if opname(node) != self.operation or node not in graph.live or named_region(graph, node) is not None:
            return NOT_MINE
        if RMSNormRule().match(graph, node) is not NOT_MINE or isinstance(ConstantRule().match(graph, node), Match):
            return NOT_MINE
        a, b = node.args[:2]
        if not isinstance(a, Node) or not isinstance(b, Node) or not (_varies(graph, a) and _varies(graph, b)):
            others = parameter_vector(graph, a) or parameter_vector(graph, b) or factor_of(graph, node)
            return NOT_MINE if others else Fail("one operand is neither a value of the tokens nor a single number")
        if node.kwargs.get("alpha", 1) != 1:
            return Fail("a sum with a factor alpha is not supported")
        layout = vector_layout(graph, node)
        if layout is None or not all(_fits(graph, at, layout) for at in (a, b)):
            return Fail("its operands are not one vector of the same width per token")

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            return self.build(builder, node, values, tokens(layout.width))

        return Match((a, b), build)

    def build(self, builder: Builder, node: Node, values: tuple[Value, ...], kind: Type) -> Value:
        return builder.emit(self.op, node, values, kind, self.op.opname.removeprefix("aux."))


def _fits(graph: CapturedGraph, node: Node, layout: VectorLayout) -> bool:
    """Whether the node has that layout, or is ``[T, W]``, a vector for each position, beside ``[B, T, W]``."""
    if vector_layout(graph, node) == layout:
        return True
    tables = [(length, layout.width) for _, length in PROBES]
    rows = (layout.batch, layout.length, len(layout.sizes)) == (0, 1, 1)
    return rows and [graph.shape(node, *probe) for probe in PROBES] == tables


def _varies(graph: CapturedGraph, node: Node) -> bool:
    """Whether the node is a value of the tokens, or has a vector for each position (an expanded bias has one)."""
    width = rows_width(graph, node)
    if node in graph.live or width is None:
        return node in graph.live
    rows = graph.evaluate(node, 1, graph.max_length).reshape(-1, width)
    return bool((rows != rows[:1]).any())


class AddRule(_BinaryRule):
    """``a + b`` -> `aux.add`."""

    operation, op = "add", Add


class SubtractRule(_BinaryRule):
    """``a - b`` -> `aux.add` of a and ``-1 * b``."""

    operation, op = "sub", Add

    def build(self, builder: Builder, node: Node, values: tuple[Value, ...], kind: Type) -> Value:
        a, b = values
        negative = builder.emit(Scale, node, (b,), kind, "negative", factor=-1.0)
        return builder.emit(Add, node, (a, negative), kind, "subtract")


class MultiplyRule(_BinaryRule):
    """``a * b`` -> `aux.multiply`."""

    operation, op = "mul", Multiply
