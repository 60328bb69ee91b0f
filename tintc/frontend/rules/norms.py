"""LayerNorm and RMSNorm, as one operation or written out, as `aux.norm`."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.layouts import vector_layout, vector_with_constant
from tintc.frontend.graph.node_queries import constant_vector, parameter_vector, peel
from tintc.frontend.graph.written_norms import read_written_norm
from tintc.frontend.rule import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Norm
from tintc.ir.core import Value, tokens

KINDS = {"layer_norm": "layer", "native_layer_norm": "layer", "rms_norm": "rms"}
DEFAULT_EPS = {"rms_norm": 1.1920928955078125e-07}
"""eps where none is given and it is not 1e-5: torch takes fp32's, the dtype transformers normalises in."""
NO_VECTOR = "it normalises something other than one vector per token"


class FusedNormRule:
    """``layer_norm(x, [W], gain?, bias?, eps)``, ``native_layer_norm(...)[0]``, ``rms_norm`` -> `aux.norm`."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        call = _fused_norm(node)
        if call is None:
            return NOT_MINE
        name = opname(call)
        x, shape, *affine = call.args
        layout = vector_layout(graph, x) if isinstance(x, Node) else None
        if not isinstance(x, Node) or layout is None or layout.ends_in_tokens or shape != [layout.sizes[-1]]:
            return Fail(NO_VECTOR)
        affine += [None] * (3 - len(affine))
        gain_name = ""
        if affine[0] is not None:
            gain_name = constant_vector(graph, affine[0])
        bias_name = ""
        if KINDS[name] == "layer" and affine[1] is not None:
            bias_name = parameter_vector(graph, affine[1])
        if gain_name is None or bias_name is None:
            return Fail("its gain is computed, and not from one parameter, or its bias is no parameter", inputs=(x,))
        sizes = {"kind": KINDS[name], "eps": _eps(name, affine), "groups": layout.groups}

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            gain = gain_name and builder.parameter(gain_name)
            bias = bias_name and builder.parameter(bias_name)
            return builder.emit(Norm, node, values, tokens(layout.width), weight=gain, bias=bias, **sizes)

        return Match((x,), build)


class WrittenNormRule:
    """A norm written out, with a gain and without bias (`written_norms`) -> `aux.norm`."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        norm = read_written_norm(graph, node)
        if norm is None:
            return NOT_MINE
        layout = vector_layout(graph, norm.x)
        gain = norm.gain
        if layout is None or layout.ends_in_tokens:
            return Fail(NO_VECTOR)
        if gain is None:
            return Fail("the norm's gain is computed, and not from one parameter", inputs=(norm.x,))
        if gain and layout.groups > 1 and graph.tensors[gain].shape == (layout.width,):  # after the heads are merged
            gain = graph.derive_from(gain, graph.tensors[gain].reshape(layout.groups, -1))
        if gain and not layout.fits(graph.tensors[gain].shape):
            return Fail("the norm's gain is not one number for each coordinate", inputs=(norm.x,))
        if gain and layout.groups == 1 and graph.tensors[gain].dim() > 1:  # of one head, ``[1, d]``
            gain = graph.derive_from(gain, graph.tensors[gain].flatten())
        if norm.eps <= 0:
            return Fail("a norm needs a positive eps", inputs=(norm.x,))
        sizes = {"kind": norm.kind, "eps": norm.eps, "groups": layout.groups}

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            weight = gain and builder.parameter(gain)
            return builder.emit(Norm, node, values, tokens(layout.width), weight=weight, **sizes)

        return Match((norm.x,), build)


class NormBiasRule:
    """A norm plus a vector of parameters, which is refused: biases of norms written out are not read.

    Were the vector taken for a constant, the norm's bias would not descend.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        pair = vector_with_constant(graph, node)
        if pair is None or opname(node) != "add":
            return NOT_MINE
        x = pair[0]
        norm = peel(graph, x)
        if _fused_norm(norm) is None and read_written_norm(graph, norm) is None:
            return NOT_MINE
        return Fail("a vector is added to a norm written out, where biases are not read", inputs=(x,))


def _fused_norm(node: Node) -> Node | None:
    """Return the operation if the node is the result of a fused norm."""
    if opname(node) == "getitem" and isinstance(node.args[0], Node) and node.args[1] == 0:
        call = node.args[0]
        if opname(call) == "native_layer_norm":
            return call
        return None
    if opname(node) in ("layer_norm", "rms_norm"):
        return node
    return None


def _eps(name: str, affine: list[Any]) -> float:
    """Return eps, which stands behind the gain, and behind the bias of an operation that has one."""
    eps = affine[1 if name == "rms_norm" else 2]
    if eps is None:
        return DEFAULT_EPS.get(name, 1e-5)
    return float(eps)
