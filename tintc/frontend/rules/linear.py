"""Linear layers, however they are written, as `aux.linear`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.layouts import vector_layout
from tintc.frontend.graph.node_queries import COPIES, argument, parameter_vector, peel
from tintc.frontend.graph.obstacle_words import PRODUCTS, VECTORS
from tintc.frontend.rule import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Linear
from tintc.ir.core import Value, tokens

COMPUTED_WEIGHT = "the weight is computed, it must be a parameter"


@dataclass(frozen=True)
class _Parts:
    """y = x W^T + b: x a node, W a parameter's name and whether it is stored ``[in, out]``, b a name or empty."""

    x: Node
    weight: str
    transpose: bool
    bias: str = ""


class LinearRule:
    """Takes, with W and b parameters:

    - ``linear(x, W, b)``;
    - ``addmm(b, x, W)``, GPT-2's Conv1D with W stored ``[in, out]``, or ``addmm(b, x, W^T)``;
    - ``mm(x, W)`` and ``matmul(x, W)``, W transposed or not;
    - ``matmul(W, x)`` with x ``[B, W, T]``;
    - any of these without bias, plus a parameter vector added after it.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        parts = _parts(graph, node)
        if isinstance(parts, Fail):
            return parts
        layout = vector_layout(graph, parts.x)
        if layout is None or layout.groups > 1:
            return Fail("the layer's input is not one vector per token", obstacle=VECTORS)

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            weight = builder.parameter(parts.weight, parts.transpose)
            bias = parts.bias and builder.parameter(parts.bias)
            width = builder.program.parameters[weight].shape[0]
            role = ""
            if parts.weight in graph.adapters:
                role = "lora"
            return builder.emit(Linear, node, values, tokens(width), weight=weight, bias=bias, role=role)

        return Match((parts.x,), build)


def _parts(graph: CapturedGraph, node: Node) -> _Parts | Fail:
    name = opname(node)
    if name == "linear":
        return _product(graph, node.args[0], node.args[1], transposed=True, bias=argument(node, 2, None))
    if name == "addmm":
        if any(value != 1 for value in node.kwargs.values()):
            return Fail("a matrix product with factors alpha or beta is not supported")
        return _product(graph, node.args[1], node.args[2], transposed=False, bias=node.args[0])
    if name in ("mm", "matmul"):
        if isinstance(node.args[1], Node) and node.args[1] in graph.live:
            return _from_the_left(graph, node.args[0], node.args[1])
        return _product(graph, node.args[0], node.args[1], transposed=False)
    if name == "add" and not node.kwargs:
        return _with_bias(graph, node)
    return NOT_MINE


def _product(graph: CapturedGraph, x: Any, matrix: Any, transposed: bool, bias: Any = None) -> _Parts | Fail:
    """Return the parts of x times the matrix, or times its transpose."""
    weight = _weight(graph, matrix)
    if weight is None:
        return Fail(COMPUTED_WEIGHT, obstacle=PRODUCTS * (matrix in graph.live))
    name, flipped = weight
    parts = _Parts(x, name, transpose=flipped == transposed)
    if bias is None:
        return parts
    bias_name = parameter_vector(graph, bias)
    if bias_name is None or graph.tensors[bias_name].dim() != 1:
        return Fail("the bias is not a parameter vector")
    return replace(parts, bias=bias_name)


def _from_the_left(graph: CapturedGraph, matrix: Any, x: Node) -> _Parts | Fail:
    """Return the parts of a matrix times the vectors of ``x [B, W, T]``."""
    layout = vector_layout(graph, x)
    weight = _weight(graph, matrix)
    if weight is None or layout is None or not layout.ends_in_tokens:
        return NOT_MINE  # a product of two values
    name, flipped = weight
    return _Parts(x, name, transpose=flipped)


def _weight(graph: CapturedGraph, value: Any) -> tuple[str, bool] | None:
    """Return a parameter matrix behind copies and transpositions: its name, and whether it is transposed."""
    flipped = False
    while isinstance(value, Node) and value not in graph.names:
        if opname(value) in ("t", "numpy_T") or _swaps(value):
            flipped = not flipped
        elif opname(value) not in COPIES | {"_to_copy", "to"}:
            return None
        value = value.args[0]
    name = graph.tensor_name(value)
    if name is None or graph.tensors[name].dim() != 2:
        return None
    return name, flipped


def _swaps(node: Node) -> bool:
    if opname(node) == "transpose":
        return set(node.args[1:]) in ({0, 1}, {-1, -2}, {0, -1}, {1, -2})
    return opname(node) == "permute" and node.args[1] in ([1, 0], [-1, 0], [-1, -2])


def _with_bias(graph: CapturedGraph, node: Node) -> _Parts | Fail:
    for x, bias in (node.args[:2], node.args[1::-1]):
        name = parameter_vector(graph, _unexpanded(bias))
        if name is None or not isinstance(x, Node) or graph.tensors[name].dim() != 1:
            continue
        inner = _parts(graph, peel(graph, x))
        if not isinstance(inner, _Parts):
            continue
        if inner.bias or len(x.users) > 1:
            return Fail("a parameter vector is added to a linear layer that has a bias, or is read elsewhere too")
        return replace(inner, bias=name)
    return NOT_MINE


def _unexpanded(value: Any) -> Any:
    while isinstance(value, Node) and opname(value) in ("expand", "expand_as", "broadcast_to"):
        value = value.args[0]
    return value
