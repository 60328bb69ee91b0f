"""RMSNorm written out in elementary operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.execution import opname
from tintc.frontend.graph import CapturedGraph
from tintc.frontend.layouts import vector_layout
from tintc.frontend.patterns import parameter_vector, peel, scalar
from tintc.frontend.rules.base import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Norm
from tintc.ir.core import Value, tokens


@dataclass(frozen=True)
class _Core:
    """x / sqrt(mean(x^2) + eps)."""

    x: Node
    eps: float


@dataclass(frozen=True)
class RMSNormParts:
    """gain * x / sqrt(mean(x^2) + eps); gain: a parameter's name, empty without one, None if it is computed."""

    x: Node
    eps: float
    gain: str | None


def read_rms_norm(graph: CapturedGraph, node: Node) -> RMSNormParts | None:
    """The norm whose result the node is; None if it is none."""
    core, gain = _core(graph, node), ""
    if core is None and opname(node) == "mul":
        core, gain = _scaled(graph, node)
    return None if core is None else RMSNormParts(core.x, core.eps, gain)


class RMSNormRule:
    """``gain * x / sqrt(mean(x^2, -1) + eps)`` -> `aux.norm`.

    The square may be ``pow 2``, ``square`` or ``x * x``; the root ``rsqrt``, ``pow -0.5``, ``sqrt`` with a division, or
    ``reciprocal(sqrt)``; the gain may stand on either side or be absent; float casts may stand anywhere.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        core = read_rms_norm(graph, node)
        if core is None:
            return NOT_MINE
        gain, layout = core.gain, vector_layout(graph, core.x)
        if layout is None:
            return Fail("it normalises something other than one vector per token")
        if gain is None:
            return Fail("the norm's gain is computed, it must be a parameter", inputs=(core.x,))
        if gain and not layout.fits(graph.tensors[gain].shape):
            return Fail("the norm's gain is not one number for each coordinate", inputs=(core.x,))
        if core.eps <= 0:
            return Fail("a norm needs a positive eps", inputs=(core.x,))

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            weight = builder.parameter(gain) if gain else ""
            sizes = {"eps": core.eps, "groups": layout.groups}
            return builder.emit(Norm, node, values, tokens(layout.width), kind="rms", weight=weight, **sizes)

        return Match((core.x,), build)


def _scaled(graph: CapturedGraph, node: Node) -> tuple[_Core | None, str | None]:
    """The norm and its gain's name (None: computed) if the product is one of a norm and something that is not live."""
    for x, gain in (node.args[:2], node.args[1::-1]):
        if not isinstance(x, Node) or (isinstance(gain, Node) and gain in graph.live):
            continue
        core = _core(graph, peel(graph, x))
        if core is not None:
            return core, parameter_vector(graph, gain)
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
            return _Core(peel(graph, x), eps)
    return None


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
    if opname(node) != "mean" or len(node.args) < 3 or node.args[2] is not True:
        return False
    last = len(x.meta["val"].shape) - 1
    if node.args[1] not in ([-1], [last]) or not isinstance(node.args[0], Node):
        return False
    return _squared(graph, peel(graph, node.args[0])) is x


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
