"""Clipped values: ``clamp(x, -c, c)``."""

from __future__ import annotations

from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.elementwise import named_region
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.node_queries import rows_width, scalar
from tintc.frontend.rules.base import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Activation, Scale
from tintc.ir.core import Value, tokens


class ClampRule:
    """``clamp(x, -c, c)`` is ``c hardtanh(x / c)`` -> `aux.scale`, `aux.activation`, `aux.scale`."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if opname(node) not in ("clamp", "clip", "hardtanh") or node not in graph.live:
            return NOT_MINE
        given = dict(zip(("x", "min", "max"), node.args, strict=False)) | node.kwargs
        x, width = given["x"], rows_width(graph, node)
        low, high = (scalar(graph, given.get(name)) for name in ("min", "max"))
        if not isinstance(x, Node) or width is None or low is None or high is None or named_region(graph, node):
            return NOT_MINE
        if not 0 < high == -low:
            return Fail(f"values are clipped from {low:g} to {high:g}, and only limits c and -c are supported")

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            small = builder.emit(Scale, node, values, tokens(width), "unit", factor=1 / high)
            clipped = builder.emit(Activation, node, (small,), tokens(width), "clip", fn="hardtanh")
            return builder.emit(Scale, node, (clipped,), tokens(width), "clipped", factor=high)

        return Match((x,), build)
