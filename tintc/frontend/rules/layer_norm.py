"""LayerNorm and RMSNorm where the graph keeps them as one operation."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.layouts import vector_layout
from tintc.frontend.graph.node_queries import constant_vector, parameter_vector
from tintc.frontend.rules.base import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Norm
from tintc.ir.core import Value, tokens

KINDS = {"layer_norm": "layer", "native_layer_norm": "layer", "rms_norm": "rms"}
SMALLEST = {"rms_norm": 1.1920928955078125e-07}
"""eps where none is given: torch takes fp32's, the dtype transformers normalises in."""


class LayerNormRule:
    """``layer_norm(x, [W], gain?, bias?, eps)``, ``native_layer_norm(...)[0]``, ``rms_norm`` -> `aux.norm`."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        source = node
        if opname(node) == "getitem" and isinstance(node.args[0], Node) and node.args[1] == 0:
            source = node.args[0]
        name = opname(source)
        if name not in KINDS or (source is node) != (name != "native_layer_norm"):
            return NOT_MINE
        x, shape, *affine = source.args
        layout = vector_layout(graph, x) if isinstance(x, Node) else None
        if not isinstance(x, Node) or layout is None or shape != [layout.sizes[-1]]:
            return Fail("it normalises something other than one vector per token")
        weight = affine[0] if affine else None
        bias = affine[1] if KINDS[name] == "layer" and len(affine) > 1 else None
        eps = _eps(name, affine)
        gain_name = "" if weight is None else constant_vector(graph, weight)
        names = [gain_name, "" if bias is None else parameter_vector(graph, bias)]
        if None in names:
            return Fail("its gain is computed, and not from one parameter, or its bias is no parameter", inputs=(x,))
        sizes = {"kind": KINDS[name], "eps": eps, "groups": layout.groups}

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            gain, beta = (builder.parameter(entry) if entry else "" for entry in names)
            return builder.emit(Norm, node, values, tokens(layout.width), weight=gain, bias=beta, **sizes)

        return Match((x,), build)


def _eps(name: str, affine: list[Any]) -> float:
    position = 1 if name == "rms_norm" else 2
    if len(affine) > position and affine[position] is not None:
        return float(affine[position])
    return SMALLEST.get(name, 1e-5)
