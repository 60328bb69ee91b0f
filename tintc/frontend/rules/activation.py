"""Activations, recognised by what they compute and not by how they are written."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.execution import execute, opname
from tintc.frontend.graph import CapturedGraph
from tintc.frontend.patterns import is_noise, peel, rows_width, scalar, single_sources
from tintc.frontend.rules.base import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Activation
from tintc.ir.core import Value, tokens
from tintc.ir.functions import ACTIVATIONS

UNARY = frozenset(
    {"relu", "gelu", "silu", "tanh", "sigmoid", "exp", "expm1", "log", "log1p", "erf", "abs", "neg", "square", "sqrt"}
    | {"rsqrt", "reciprocal", "softplus", "elu", "selu", "celu", "leaky_relu", "hardtanh", "hardswish", "hardsigmoid"}
    | {"mish", "relu6", "clamp", "clamp_min", "clamp_max", "sin", "cos", "log_sigmoid", "sign"}
)
BINARY = frozenset({"add", "sub", "rsub", "mul", "div", "pow", "maximum", "minimum"})
FAR = torch.tensor([-60.0, 25.0, 60.0], dtype=torch.float64)
POINTS = torch.cat((torch.linspace(-9, 9, 199, dtype=torch.float64), FAR))
TOLERANCE = 1e-10


class ActivationRule:
    """The largest region of elementwise operations with one source and otherwise only numbers -> `aux.activation`.

    The region is evaluated as a function R -> R in fp64 and compared with every entry of `ACTIVATIONS`.
    """

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        source = elementwise_source(graph, node)
        if source is None:
            return NOT_MINE
        width = rows_width(graph, node)
        if width is None:
            return Fail("it acts on something other than one vector per token")
        y = probe(graph, node, source)
        known = [name for name, act in ACTIVATIONS.items() if _agrees(y, act(POINTS))]
        if not known:
            return Fail(_unknown(y), inputs=(source,))

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            return builder.emit(Activation, node, values, tokens(width), fn=known[0])

        return Match((source,), build)


def elementwise_source(graph: CapturedGraph, node: Node) -> Node | None:
    """The farthest single value of which `node` is an elementwise function, None if it is not one of any."""
    found = single_sources(graph, node, partial(_crosses, graph))
    return peel(graph, found[-1]) if found else None


def _crosses(graph: CapturedGraph, node: Node) -> bool:
    if is_noise(graph, node):
        return True
    if opname(node) in UNARY:
        return True
    if opname(node) not in BINARY:
        return False
    return all(_is_operand(graph, node, value) for value in node.args[:2])


def _is_operand(graph: CapturedGraph, node: Node, value: object) -> bool:
    """A live tensor of the node's own shape, or a number."""
    if isinstance(value, Node) and value in graph.live:
        return rows_width(graph, value) is not None and rows_width(graph, value) == rows_width(graph, node)
    return scalar(graph, value) is not None


def probe(graph: CapturedGraph, node: Node, source: Node) -> Tensor:
    """Values of the region from `source` to `node` at `POINTS`, in fp64."""
    constants = graph.evaluator(1, POINTS.numel())
    memory = {source: POINTS}

    def value(at: Node) -> Tensor:
        if at not in graph.live:
            return constants(at).reshape(())
        at = peel(graph, at)
        if at not in memory:
            memory[at] = execute(at, value, torch.float64)
        return memory[at]

    return value(node)


def _agrees(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= TOLERANCE * b.abs().clamp(min=1)).all())


def _unknown(y: Tensor) -> str:
    slope = float(y[-1] / POINTS[-1])
    if _agrees(y, slope * POINTS):
        return f"a value is scaled by {slope:.6g}, and only scores of attention may be scaled"
    return f"this function is none of the known activations ({', '.join(ACTIVATIONS)})"
