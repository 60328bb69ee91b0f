"""RMSNorm and LayerNorm written out in elementary operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.layouts import vector_layout
from tintc.frontend.graph.node_queries import constant_vector, peel, scalar
from tintc.frontend.rules.base import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Norm
from tintc.ir.core import Value, tokens


@dataclass(frozen=True)
class _Core:
    """x / sqrt(mean(x^2) + eps), or, of kind ``layer``, the same of x - mean(x)."""

    x: Node
    eps: float
    kind: str = "rms"


@dataclass(frozen=True)
class RMSNormParts:
    """gain * x / sqrt(mean(x^2) + eps), of kind ``layer`` the same of x - mean(x); gain: a tensor's name, empty without
    one, None if it is computed from more than one parameter."""

    x: Node
    eps: float
    gain: str | None
    kind: str = "rms"


def read_rms_norm(graph: CapturedGraph, node: Node) -> RMSNormParts | None:
    """The norm whose result the node is; None if it is none."""
    core, gain = _core(graph, node), ""
    if core is None and opname(node) == "mul":
        core, gain = _scaled(graph, node)
    return None if core is None else RMSNormParts(core.x, core.eps, gain, core.kind)


class RMSNormRule:
    """``gain * x / sqrt(mean(x^2, -1) + eps)`` -> `aux.norm`.

    The square may be ``pow 2``, ``square`` or ``x * x``; the root ``rsqrt``, ``pow -0.5``, ``sqrt`` with a division, or
    ``reciprocal(sqrt)``; the gain may stand on either side, be computed (``1 + w``) or be absent; float casts may stand
    anywhere. Where x is ``z - mean(z, -1)``, it is a LayerNorm of z without bias.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        core = read_rms_norm(graph, node)
        if core is None:
            return NOT_MINE
        gain, layout = core.gain, vector_layout(graph, core.x)
        if layout is None:
            return Fail("it normalises something other than one vector per token")
        if gain is None:
            return Fail("the norm's gain is computed, and not from one parameter", inputs=(core.x,))
        if gain and not layout.fits(graph.tensors[gain].shape):
            return Fail("the norm's gain is not one number for each coordinate", inputs=(core.x,))
        if gain and layout.groups == 1 and graph.tensors[gain].dim() > 1:  # of one head, ``[1, d]``
            gain = graph.derive_from(gain, graph.tensors[gain].flatten())
        if core.eps <= 0:
            return Fail("a norm needs a positive eps", inputs=(core.x,))

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            weight = builder.parameter(gain) if gain else ""
            sizes = {"kind": core.kind, "eps": core.eps, "groups": layout.groups}
            return builder.emit(Norm, node, values, tokens(layout.width), weight=weight, **sizes)

        return Match((core.x,), build)


def _scaled(graph: CapturedGraph, node: Node) -> tuple[_Core | None, str | None]:
    """The norm and its gain's name (None: computed) if the product is one of a norm and something that is not live."""
    for x, gain in (node.args[:2], node.args[1::-1]):
        if (
            not isinstance(x, Node)
            or (isinstance(gain, Node) and gain in graph.live)
            or scalar(graph, gain) is not None
        ):
            continue
        core = _core(graph, peel(graph, x))
        if core is not None:
            return core, constant_vector(graph, gain)
    return None, None


def _core(graph: CapturedGraph, node: Node) -> _Core | None:
    name = opname(node)
    if name not in ("mul", "div"):
        return None
    pairs = (node.args[:2], node.args[1::-1]) if name == "mul" else (node.args[:2],)
    for x, factor in pairs:
        if not isinstance(x, Node) or not isinstance(factor, Node):
            continue
        mean = _root(graph, peel(graph, factor), inverse=name == "mul")
        eps = None if mean is None else _shifted_mean(graph, mean, peel(graph, x))
        if eps is not None:
            centred = _centred(graph, peel(graph, x))
            return _Core(peel(graph, x), eps) if centred is None else _Core(centred, eps, "layer")
    return None


def _centred(graph: CapturedGraph, node: Node) -> Node | None:
    """z if the node is ``z - mean(z, -1, keepdim)``."""
    if opname(node) != "sub" or node.kwargs or not all(isinstance(value, Node) for value in node.args):
        return None
    z, mean = (peel(graph, value) for value in node.args if isinstance(value, Node))
    return z if _is_mean(mean) and peel(graph, mean.all_input_nodes[0]) is z else None


def _root(graph: CapturedGraph, node: Node, inverse: bool) -> Node | None:
    """v of ``v^-0.5`` (inverse) or ``v^0.5``."""
    name = opname(node)
    source = node.args[0] if node.args else None
    if not isinstance(source, Node):
        return None
    if name == "reciprocal" and inverse:
        return _root(graph, peel(graph, source), inverse=False)
    wanted = -0.5 if inverse else 0.5
    if name == ("rsqrt" if inverse else "sqrt") or (name == "pow" and scalar(graph, node.args[1]) == wanted):
        return peel(graph, source)
    return None


def _shifted_mean(graph: CapturedGraph, node: Node, x: Node) -> float | None:
    """eps if the node is ``mean(x^2, -1, keepdim) + eps``."""
    if opname(node) != "add":
        return None
    for mean, eps in (node.args[:2], node.args[1::-1]):
        value = scalar(graph, eps)
        if isinstance(mean, Node) and value is not None and _is_mean_square(graph, peel(graph, mean), x):
            return value
    return None


def _is_mean_square(graph: CapturedGraph, node: Node, x: Node) -> bool:
    if not _is_mean(node):
        return False
    found = _squared(graph, peel(graph, node.all_input_nodes[0]))
    return found is not None and _same(graph, found, x)


def _is_mean(node: Node) -> bool:
    """Whether the node is the mean over the last dimension, which is kept."""
    if opname(node) != "mean" or len(node.args) < 3 or node.args[2] is not True:
        return False
    last = len(node.meta["val"].shape) - 1
    return node.args[1] in ([-1], [last])


def _same(graph: CapturedGraph, a: Node, b: Node) -> bool:
    """Whether two nodes are one, or the same difference written twice."""
    if a is b:
        return True
    centred = _centred(graph, a)
    return centred is not None and centred is _centred(graph, b)


def _squared(graph: CapturedGraph, node: Node) -> Node | None:
    name = opname(node)
    base: Any = node.args[0] if node.args else None
    if not isinstance(base, Node):
        return None
    if name == "square" or (name == "pow" and scalar(graph, node.args[1]) == 2):
        return peel(graph, base)
    if name == "mul" and isinstance(node.args[1], Node) and peel(graph, node.args[1]) is peel(graph, base):
        return peel(graph, base)
    return None
