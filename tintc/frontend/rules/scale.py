"""A value times a number: an embedding's scale, a residual multiplier, a scale of logits."""

from __future__ import annotations

from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.elementwise import factor_of, named_region
from tintc.frontend.graph import CapturedGraph
from tintc.frontend.patterns import rows_width
from tintc.frontend.rules.base import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Scale
from tintc.ir.core import Value, tokens


class ScaleRule:
    """``x * c``, ``c * x``, ``x / c`` and ``-x`` -> `aux.scale`, unless it ends an activation written out."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        found = factor_of(graph, node)
        if found is None or rows_width(graph, node) is None:
            return NOT_MINE
        x, factor = found
        width = rows_width(graph, x)
        if width is None or width != rows_width(graph, node) or named_region(graph, node) is not None:
            return NOT_MINE

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            return builder.emit(Scale, node, values, tokens(width), "scale", factor=factor)

        return Match((x,), build)
