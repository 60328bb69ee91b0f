"""Activations, recognised by what they compute and not by how they are written."""

from __future__ import annotations

from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.elementwise import elementwise_source, factor_of, mixture, named_region
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.layouts import vector_layout
from tintc.frontend.rules.base import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Activation
from tintc.ir.core import Value, tokens
from tintc.ir.functions import ACTIVATIONS


class ActivationRule:
    """The largest region of elementwise operations with one source that is a known function -> `aux.activation`.

    The region is evaluated as a function R -> R in fp64 and compared with every entry of `ACTIVATIONS`.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        source = elementwise_source(graph, node)
        if source is None:
            return NOT_MINE
        layout = vector_layout(graph, node)
        if layout is None:
            return Fail("it acts on something other than one vector per token")
        found = named_region(graph, node)
        if found is None:
            known = ", ".join(name for name in ACTIVATIONS if name != "identity")
            return (
                NOT_MINE if _others(graph, node) else Fail(f"this function is none of the known activations ({known})")
            )
        source, name = found

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            return builder.emit(Activation, node, values, tokens(layout.width), fn=name)

        return Match((source,), build)


def _others(graph: CapturedGraph, node: Node) -> bool:
    """Whether the last operation is other rules' business: a sum, a product, or a mixture of activations."""
    if factor_of(graph, node) is not None or mixture(graph, node) is not None:
        return True
    live = [value for value in node.args[:2] if isinstance(value, Node) and value in graph.live]
    return opname(node) in ("add", "sub", "mul") and len(live) == 2
