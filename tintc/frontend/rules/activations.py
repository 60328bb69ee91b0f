"""Elementwise functions of one value, recognised by what they compute and not by how they are written."""

from __future__ import annotations

from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.elementwise import elementwise_source, mixture, named_region, swish
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.layouts import vector_layout
from tintc.frontend.graph.node_queries import rows_width, scalar
from tintc.frontend.graph.obstacle_words import ACTIVATION
from tintc.frontend.rule import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Activation, Add, Scale
from tintc.ir.core import Type, Value, tokens
from tintc.ir.functions import ACTIVATIONS


class ActivationRule:
    """The largest region of elementwise operations with one source that is a known function -> `aux.activation`.

    The region is evaluated as a function R -> R in fp64 and compared with every entry of `ACTIVATIONS`.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        layout = vector_layout(graph, node)
        if layout is None:
            return NOT_MINE
        region = named_region(graph, node)
        if region is None:
            return NOT_MINE
        source, name = region

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            return builder.emit(Activation, node, values, tokens(layout.width), fn=name)

        return Match((source,), build)


class MixtureRule:
    """A region that is ``a relu2(x) + b negexp(x) + c x`` -> activations, `aux.scale` and `aux.add`.

    xIELU (arXiv 2411.13010) is ``a x^2 + c x`` above 0 and ``b (e^x - 1 - x) + c x`` below; its learned weights become
    numbers of the program, which nothing updates.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        layout = vector_layout(graph, node)
        if layout is None:
            return NOT_MINE
        region = mixture(graph, node)
        if region is None:
            return NOT_MINE
        source, weights = region

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            kind = tokens(layout.width)

            def term(name: str) -> Value:
                operands = values
                if name != "identity":
                    operands = (builder.emit(Activation, node, values, kind, name, fn=name),)
                return builder.emit(Scale, node, operands, kind, "scale", factor=weights[name])

            first, *others = weights
            total = term(first)
            for name in others:
                total = builder.emit(Add, node, (total, term(name)), kind, "add")
            return total

        return Match((source,), build)


class SwishRule:
    """``x * sigmoid(a x)`` is ``silu(a x) / a`` for any number a -> `aux.scale`, `aux.activation`, `aux.scale`."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        layout = vector_layout(graph, node)
        if layout is None:
            return NOT_MINE
        region = swish(graph, node)
        if region is None:
            return NOT_MINE
        source, slope = region

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            return _scaled(builder, node, values, tokens(layout.width), "silu", slope)

        return Match((source,), build)


class ClampRule:
    """``clamp(x, -c, c)`` is ``c hardtanh(x / c)``, and ``clamp(x, max=c)`` the same of the smaller of its argument and
    1; so is ``clamp(x, min=c)`` with a negative c -> `aux.scale`, `aux.activation`, `aux.scale`."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if opname(node) not in ("clamp", "clip", "hardtanh") or node not in graph.live:
            return NOT_MINE
        arguments = dict(zip(("x", "min", "max"), node.args, strict=False)) | node.kwargs
        x = arguments["x"]
        assert isinstance(x, Node)
        width = rows_width(graph, x)
        limits = [arguments.get(name) for name in ("min", "max")]
        low, high = (scalar(graph, limit) for limit in limits)
        if width is None or [low, high].count(None) != limits.count(None):
            return NOT_MINE
        name = "hardtanh"
        limit = high
        if low is None:
            name = "at_most_one"
        elif high is None:
            name = "at_most_one"
            limit = low
        if limit is None or limit * (high or -1) <= 0 or (name == "hardtanh" and low != -limit):
            return Fail(f"values are clipped from {low} to {high}; limits c and -c are supported, or one that leaves 0")

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            return _scaled(builder, node, values, tokens(width), name, 1 / limit)

        return Match((x,), build)


def _scaled(builder: Builder, node: Node, values: tuple[Value, ...], kind: Type, name: str, factor: float) -> Value:
    """Emit ``f(factor x) / factor`` for the activation f of that name."""
    small = builder.emit(Scale, node, values, kind, "unit", factor=factor)
    changed = builder.emit(Activation, node, (small,), kind, name, fn=name)
    return builder.emit(Scale, node, (changed,), kind, "scaled", factor=1 / factor)


class UnknownFunctionRule:
    """A region of elementwise operations that no other rule takes, which is refused."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if elementwise_source(graph, node) is None:
            return NOT_MINE
        if vector_layout(graph, node) is None:
            return Fail("it acts on something other than one vector per token")
        known = ", ".join(name for name in ACTIVATIONS if name != "identity")
        return Fail(f"this function is none of the known activations ({known})", obstacle=ACTIVATION)
