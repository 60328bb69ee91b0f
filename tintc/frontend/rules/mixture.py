"""Activations that are sums of simpler ones, such as xIELU with its learned weights."""

from __future__ import annotations

from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.elementwise import mixture, named_region
from tintc.frontend.graph.layouts import vector_layout
from tintc.frontend.rules.base import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Activation, Add, Scale
from tintc.ir.core import Value, tokens


class MixtureRule:
    """A region that is ``a relu2(x) + b negexp(x) + c x`` -> activations, `aux.scale` and `aux.add`.

    xIELU (arXiv 2411.13010) is ``a x^2 + c x`` above 0 and ``b (e^x - 1 - x) + c x`` below; its learned weights become
    numbers of the program, which nothing updates.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        layout = vector_layout(graph, node)
        if layout is None or named_region(graph, node) is not None:
            return NOT_MINE
        found = mixture(graph, node)
        if found is None:
            return NOT_MINE
        source, weights = found

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            kind, total = tokens(layout.width), None
            for name, weight in weights.items():
                term = values if name == "identity" else (builder.emit(Activation, node, values, kind, name, fn=name),)
                scaled = builder.emit(Scale, node, term, kind, "scale", factor=weight)
                total = scaled if total is None else builder.emit(Add, node, (total, scaled), kind, "add")
            assert total is not None
            return total

        return Match((source,), build)
