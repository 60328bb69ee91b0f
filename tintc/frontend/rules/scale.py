"""A value times a number: an embedding's scale, a residual multiplier, a scale of logits."""

from __future__ import annotations

from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.elementwise import factor_of, named_region
from tintc.frontend.graph.layouts import vector_layout
from tintc.frontend.rules.base import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Scale
from tintc.ir.core import Value, tokens


class ScaleRule:
    """``x * c``, ``c * x``, ``x / c`` and ``-x`` -> `aux.scale`, unless it ends an activation written out."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        found = factor_of(graph, node)
        layout = vector_layout(graph, node)
        if found is None or layout is None:
            return NOT_MINE
        x, factor = found
        if vector_layout(graph, x) != layout or named_region(graph, node) is not None:
            return NOT_MINE

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            return builder.emit(Scale, node, values, tokens(layout.width), "scale", factor=factor)

        return Match((x,), build)
