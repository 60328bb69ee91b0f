"""Elementwise functions of one value, recognised by what they compute and not by how they are written."""

from __future__ import annotations

from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.elementwise import elementwise_source, mixture, named_region
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.layouts import vector_layout
from tintc.frontend.graph.node_queries import rows_width, scalar
from tintc.frontend.rule import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Activation, Add, Scale
from tintc.ir.core import Value, tokens
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


class ClampRule:
    """``clamp(x, -c, c)`` is ``c hardtanh(x / c)`` -> `aux.scale`, `aux.activation`, `aux.scale`."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if opname(node) not in ("clamp", "clip", "hardtanh") or node not in graph.live:
            return NOT_MINE
        arguments = dict(zip(("x", "min", "max"), node.args, strict=False)) | node.kwargs
        x = arguments["x"]
        assert isinstance(x, Node)
        width = rows_width(graph, x)
        low, high = (scalar(graph, arguments.get(name)) for name in ("min", "max"))
        if width is None or low is None or high is None:
            return NOT_MINE
        if not 0 < high == -low:
            return Fail(f"values are clipped from {low:g} to {high:g}, and only limits c and -c are supported")

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            kind = tokens(width)
            small = builder.emit(Scale, node, values, kind, "unit", factor=1 / high)
            clipped = builder.emit(Activation, node, (small,), kind, "clip", fn="hardtanh")
            return builder.emit(Scale, node, (clipped,), kind, "clipped", factor=high)

        return Match((x,), build)


class UnknownFunctionRule:
    """A region of elementwise operations that no other rule takes, which is refused."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if elementwise_source(graph, node) is None:
            return NOT_MINE
        if vector_layout(graph, node) is None:
            return Fail("it acts on something other than one vector per token")
        known = ", ".join(name for name in ACTIVATIONS if name != "identity")
        return Fail(f"this function is none of the known activations ({known})")
