"""RMSNorm and LayerNorm written out in elementary operations: ``gain * x / sqrt(mean(x^2, -1) + eps)``.

The square may be ``pow 2``, ``square`` or ``x * x``; the root ``rsqrt``, ``pow -0.5``, ``sqrt`` with a division, or
``reciprocal(sqrt)``; the gain may stand on either side, be computed (``1 + w``) or be absent; float casts may stand
anywhere. Where x is ``z - mean(z, -1)``, it is a LayerNorm of z.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.layouts import vector_layout
from tintc.frontend.graph.node_queries import VIEWS, constant_vector, peel, scalar

MEAN_ARGUMENTS = 3
"""Arguments of a mean that names its dimension and says that it keeps it."""


@dataclass(frozen=True)
class WrittenNorm:
    """gain * x / sqrt(mean(x^2) + eps), of kind ``layer`` the same of x - mean(x).

    gain: a tensor's name, empty without one, None if it is computed from more than one parameter.
    """

    x: Node
    eps: float
    gain: str | None = ""
    kind: str = "rms"


def read_written_norm(graph: CapturedGraph, node: Node) -> WrittenNorm | None:
    """Return the norm whose result the node is; None if it is none."""
    norm = _without_gain(graph, node)
    if norm is None and opname(node) == "mul":
        return _with_gain(graph, node)
    return norm


def _with_gain(graph: CapturedGraph, node: Node) -> WrittenNorm | None:
    """Return the norm if the product is one of a norm and something that is not live."""
    for x, gain in _either_way(node):
        constant = not (isinstance(gain, Node) and gain in graph.live) and scalar(graph, gain) is None
        if not constant or not isinstance(x, Node):
            continue
        norm = _without_gain(graph, _unmerged(graph, peel(graph, x)))
        if norm is not None:
            return replace(norm, gain=constant_vector(graph, gain))
    return None


def _unmerged(graph: CapturedGraph, node: Node) -> Node:
    """Return what a view of whole vectors is a view of, such as their heads."""
    layout = vector_layout(graph, node)
    while opname(node) in VIEWS and layout is not None and layout.is_rows:
        heads = peel(graph, node.all_input_nodes[0])
        before = vector_layout(graph, heads)
        if before is None or before.width != layout.width or before.length > 1:
            break
        node = heads
        layout = before
    return node


def _without_gain(graph: CapturedGraph, node: Node) -> WrittenNorm | None:
    """Return the norm if the node is ``x * v^-0.5`` or ``x / v^0.5`` with v of `_read_eps`."""
    name = opname(node)
    pairs: Any = ()
    if name == "mul":
        pairs = _either_way(node)
    elif name == "div":
        pairs = (node.args[:2],)
    for x, factor in pairs:
        if not isinstance(x, Node) or not isinstance(factor, Node):
            continue
        x = peel(graph, x)
        shifted_mean = _under_root(graph, peel(graph, factor), inverse=name == "mul")
        if shifted_mean is None:
            continue
        eps = _read_eps(graph, shifted_mean, x)
        if eps is None:
            continue
        uncentred = _uncentred(graph, x)
        if uncentred is None:
            return WrittenNorm(x, eps)
        return WrittenNorm(uncentred, eps, kind="layer")
    return None


def _either_way(node: Node) -> Iterator[tuple[Any, Any]]:
    """Yield the two operands in both orders."""
    a, b = node.args[:2]
    yield a, b
    yield b, a


def _uncentred(graph: CapturedGraph, node: Node) -> Node | None:
    """Return z if the node is ``z - mean(z, -1, keepdim)``."""
    if opname(node) != "sub" or node.kwargs or not all(isinstance(value, Node) for value in node.args):
        return None
    z, mean = (peel(graph, value) for value in node.args if isinstance(value, Node))
    if _is_mean(mean) and peel(graph, mean.all_input_nodes[0]) is z:
        return z
    return None


def _under_root(graph: CapturedGraph, node: Node, inverse: bool) -> Node | None:
    """Return v of ``v^-0.5`` (inverse) or ``v^0.5``."""
    if not node.args or not isinstance(node.args[0], Node):
        return None
    name = opname(node)
    operand = peel(graph, node.args[0])
    if name == "reciprocal" and inverse:
        return _under_root(graph, operand, inverse=False)
    function, exponent = ("rsqrt", -0.5) if inverse else ("sqrt", 0.5)
    if name == function or (name == "pow" and scalar(graph, node.args[1]) == exponent):
        return operand
    return None


def _read_eps(graph: CapturedGraph, node: Node, x: Node) -> float | None:
    """Return eps if the node is ``mean(x^2, -1, keepdim) + eps``."""
    if opname(node) != "add":
        return None
    for mean, shift in _either_way(node):
        eps = scalar(graph, shift)
        if isinstance(mean, Node) and eps is not None and _is_mean_square(graph, peel(graph, mean), x):
            return eps
    return None


def _is_mean_square(graph: CapturedGraph, node: Node, x: Node) -> bool:
    if not _is_mean(node):
        return False
    base = _squared(graph, peel(graph, node.all_input_nodes[0]))
    return base is not None and _is_same(graph, base, x)


def _is_mean(node: Node) -> bool:
    """Return True if the node is the mean over the last dimension, which is kept."""
    if opname(node) != "mean" or len(node.args) < MEAN_ARGUMENTS or node.args[2] is not True:
        return False
    last = len(node.meta["val"].shape) - 1
    return node.args[1] in ([-1], [last])


def _is_same(graph: CapturedGraph, a: Node, b: Node) -> bool:
    """Return True if two nodes are one, or the same difference written twice."""
    if a is b:
        return True
    uncentred = _uncentred(graph, a)
    return uncentred is not None and uncentred is _uncentred(graph, b)


def _squared(graph: CapturedGraph, node: Node) -> Node | None:
    """Return z if the node is ``z^2``."""
    if not node.args or not isinstance(node.args[0], Node):
        return None
    name = opname(node)
    base = peel(graph, node.args[0])
    if name == "square" or (name == "pow" and scalar(graph, node.args[1]) == 2):
        return base
    if name == "mul" and isinstance(node.args[1], Node) and peel(graph, node.args[1]) is base:
        return base
    return None
