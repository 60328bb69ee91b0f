"""A value times a number, a value with a constant vector, and sums, differences and products of two values."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.elementwise import factor_of
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.layouts import VectorLayout, vector_layout, vector_with_constant
from tintc.frontend.graph.node_queries import PROBES, peel, rows_width, scalar, sizes
from tintc.frontend.rule import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Add, Constant, Multiply, Scale
from tintc.ir.auxiliary.base import AuxOp
from tintc.ir.core import Type, Value, tokens

OPS: dict[str, type[AuxOp]] = {"add": Add, "mul": Multiply}


class ScaleRule:
    """``x * c``, ``c * x``, ``x / c`` and ``-x`` -> `aux.scale`."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        product = factor_of(graph, node)
        layout = vector_layout(graph, node)
        if product is None or layout is None:
            return NOT_MINE
        x, factor = product
        if vector_layout(graph, x) != layout:
            return NOT_MINE

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            return builder.emit(Scale, node, values, tokens(layout.width), "scale", factor=factor)

        return Match((x,), build)


class ConstantRule:
    """``x + c``, ``x * c`` and the same turned round -> `aux.constant` with `aux.add` or `aux.multiply`.

    c is made of parameters and has the same numbers at every token: an initial state, a bias that the coordinates of a
    head share, weights of a residual connection. It belongs to no group of parameters that descend.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        pair = vector_with_constant(graph, node)
        layout = vector_layout(graph, node)
        if pair is None or layout is None:
            return NOT_MINE
        x, constant = pair
        if _varies(graph, constant):
            return NOT_MINE
        row = constant_row(graph, constant, node, layout)
        if row is None:
            return Fail("one operand is made of parameters and not the same vector at every token", inputs=(x,))
        table = graph.derive_constant("vector", row[None])
        name = opname(node)

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            kind = tokens(layout.width)
            vector = builder.emit(Constant, node, (), kind, "constant", table=builder.parameter(table))
            return builder.emit(OPS[name], node, (*values, vector), kind, name)

        return Match((x,), build)


class BinaryRule:
    """An operation on two values of one width, of the tokens or of their positions."""

    operation: str
    op: type[AuxOp]

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if opname(node) != self.operation or node not in graph.live:
            return NOT_MINE
        a, b = node.args[:2]
        if scalar(graph, a) is not None or scalar(graph, b) is not None:
            return NOT_MINE
        if node.kwargs.get("alpha", 1) != 1:
            return Fail("a sum with a factor alpha is not supported")
        if not isinstance(a, Node) or not isinstance(b, Node) or not (_varies(graph, a) and _varies(graph, b)):
            return Fail("one operand is neither a value of the tokens nor a single number")
        layout = vector_layout(graph, node)
        if layout is None or not all(_fits(graph, operand, layout) for operand in (a, b)):
            return Fail("its operands are not one vector of the same width per token")

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            return self.build(builder, node, values, tokens(layout.width))

        return Match((a, b), build)

    def build(self, builder: Builder, node: Node, values: tuple[Value, ...], kind: Type) -> Value:
        return builder.emit(self.op, node, values, kind, self.op.opname.removeprefix("aux."))


class AddRule(BinaryRule):
    """``a + b`` -> `aux.add`."""

    operation = "add"
    op = Add


class SubtractRule(BinaryRule):
    """``a - b`` -> `aux.add` of a and ``-1 * b``."""

    operation = "sub"
    op = Add

    def build(self, builder: Builder, node: Node, values: tuple[Value, ...], kind: Type) -> Value:
        a, b = values
        negative = builder.emit(Scale, node, (b,), kind, "negative", factor=-1.0)
        return builder.emit(Add, node, (a, negative), kind, "subtract")


class MultiplyRule(BinaryRule):
    """``a * b`` -> `aux.multiply`."""

    operation = "mul"
    op = Multiply


class ShiftedProductRule:
    """``(x + c) * y`` with a number c is ``x * y + c * y`` -> `aux.multiply`, `aux.scale`, `aux.add`.

    x + c alone has no place in a program: zeros must stay zeros where a value is narrower than its slot.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        layout = vector_layout(graph, node)
        if opname(node) != "mul" or node not in graph.live or layout is None:
            return NOT_MINE
        for shifted, y in (node.args[:2], node.args[1::-1]):
            parts = _shift(graph, shifted)
            if parts is None or not isinstance(y, Node) or y not in graph.live:
                continue
            x, number = parts
            if vector_layout(graph, x) == layout == vector_layout(graph, y):
                return Match((x, y), partial(self._build, node=node, kind=tokens(layout.width), number=number))
        return NOT_MINE

    def _build(self, builder: Builder, values: tuple[Value, ...], node: Node, kind: Type, number: float) -> Value:
        x, y = values
        product = builder.emit(Multiply, node, (x, y), kind, "multiply")
        if number != 1:
            y = builder.emit(Scale, node, (y,), kind, "scale", factor=number)
        return builder.emit(Add, node, (product, y), kind, "add")


def _shift(graph: CapturedGraph, value: object) -> tuple[Node, float] | None:
    """Return x and c if the value is ``x + c``, ``c + x`` or ``x - c`` with a number c."""
    if not isinstance(value, Node):
        return None
    value = peel(graph, value)
    if opname(value) not in ("add", "sub") or value.kwargs:
        return None
    x, number = value.args[:2]
    sign = 1.0
    if opname(value) == "sub":
        sign = -1.0
    elif x not in graph.live:
        x, number = number, x
    shift = scalar(graph, number)
    if not isinstance(x, Node) or x not in graph.live or not shift:
        return None
    return x, sign * shift


def constant_row(graph: CapturedGraph, constant: Node, node: Node, layout: VectorLayout) -> Tensor | None:
    """Return the vector ``[W]`` that the constant is at every token of a node with this layout; None if it varies."""
    by_size = []
    for batch, length in sizes(graph):
        shape = graph.shape(node, batch, length)
        assert shape is not None
        value = layout.take(graph.evaluate(constant, batch, length).expand(shape), batch, length)
        by_size.append(value.reshape(-1, layout.width))
    rows = torch.cat(by_size)
    if bool((rows != rows[0]).any()):
        return None
    return rows[0].clone()


def _fits(graph: CapturedGraph, node: Node, layout: VectorLayout) -> bool:
    """Return True if the node has that layout, or is ``[T, W]``, a vector for each position, beside ``[B, T, W]``."""
    if vector_layout(graph, node) == layout:
        return True
    tables = [(length, layout.width) for _, length in PROBES]
    rows = (layout.batch, layout.length, len(layout.sizes)) == (0, 1, 1)
    return rows and [graph.shape(node, *probe) for probe in PROBES] == tables


def _varies(graph: CapturedGraph, node: Node) -> bool:
    """Return True if the node is a value of the tokens, or has a vector for each position.

    A bias that is expanded to all positions has the same vector at each, and does not vary.
    """
    if node in graph.live:
        return True
    width = rows_width(graph, node)
    if width is None:
        return False
    rows = graph.evaluate(node, 1, graph.max_length).reshape(-1, width)
    return bool((rows != rows[:1]).any())
