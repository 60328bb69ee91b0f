"""Regions of elementwise operations: functions R -> R applied to every coordinate of one value."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import execute, opname
from tintc.frontend.graph.node_queries import PROBES, is_noise, peel, scalar, single_sources
from tintc.ir.functions import ACTIVATIONS

UNARY = frozenset(
    {"relu", "gelu", "silu", "tanh", "sigmoid", "exp", "expm1", "log", "log1p", "erf", "abs", "neg", "square", "sqrt"}
    | {"rsqrt", "reciprocal", "softplus", "elu", "selu", "celu", "leaky_relu", "hardtanh", "hardswish", "hardsigmoid"}
    | {"mish", "relu6", "clamp", "clamp_min", "clamp_max", "sin", "cos", "log_sigmoid", "sign"}
)
BINARY = frozenset({"add", "sub", "rsub", "mul", "div", "pow", "maximum", "minimum", "gt", "ge", "lt", "le"})
FAR = torch.tensor([-60.0, 25.0, 60.0], dtype=torch.float64)
POINTS = torch.cat((torch.linspace(-9, 9, 199, dtype=torch.float64), FAR))
TOLERANCE = 2e-9
"""Some models write a constant of their activation to eight digits."""
MIXED = ("relu2", "negexp", "identity")
"""Functions whose sums are recognised: xIELU is one of these three."""


def named_region(graph: CapturedGraph, node: Node) -> tuple[Node, str] | None:
    """Return the farthest value of which the node is a known activation, and the activation's name."""
    for source in reversed(single_sources(graph, node, partial(_crosses, graph))):
        source = peel(graph, source)
        y = probe(graph, node, source)
        for name, act in ACTIVATIONS.items():
            if name != "identity" and agrees(y, act(POINTS)):
                return source, name
    return None


def swish(graph: CapturedGraph, node: Node) -> tuple[Node, float] | None:
    """Return x and a if the node is ``x * sigmoid(a x)``, of the farthest such x."""
    at = POINTS.abs().sub(1).abs().argmin()
    for source in reversed(single_sources(graph, node, partial(_crosses, graph))):
        source = peel(graph, source)
        y = probe(graph, node, source)
        slope = float(torch.logit(y[at] / POINTS[at]) / POINTS[at])
        if math.isfinite(slope) and slope and agrees(y, POINTS * torch.sigmoid(slope * POINTS)):
            return source, slope
    return None


def elementwise_source(graph: CapturedGraph, node: Node) -> Node | None:
    """Return the farthest single value of which `node` is an elementwise function; None if it is not one of any."""
    sources = single_sources(graph, node, partial(_crosses, graph))
    if not sources:
        return None
    return peel(graph, sources[-1])


def factor_of(graph: CapturedGraph, node: Node) -> tuple[Node, float] | None:
    """Return x and c if the node is ``x * c``, ``c * x``, ``x / c`` or ``-x``."""
    name = opname(node)
    if node.kwargs:  # a division that rounds
        return None
    if name == "neg" and isinstance(node.args[0], Node):
        return node.args[0], -1.0
    if name not in ("mul", "div"):
        return None
    x, number = node.args[:2]
    if name == "mul" and x not in graph.live:
        x, number = number, x
    factor = scalar(graph, number)
    if not isinstance(x, Node) or x not in graph.live or not factor:
        return None
    if name == "div":
        return x, 1 / factor
    return x, factor


def mixture(graph: CapturedGraph, node: Node) -> tuple[Node, dict[str, float]] | None:
    """Return the value and the weights if the node is a sum of `MIXED` functions of it, each times a number.

    Not compared near 0, where xIELU as transformers writes it is 1e-6 off its own limit.
    """
    source = elementwise_source(graph, node)
    if source is None or opname(node) != "where":
        return None
    away = POINTS.abs() > 1e-3
    y = probe(graph, node, source)[away]
    basis = torch.stack([ACTIVATIONS[name](POINTS[away]) for name in MIXED], 1)
    # Rows are weighted down where a function is large, so that all count.
    size = basis.abs().amax(1, keepdim=True)
    weights = torch.linalg.lstsq(basis / size, (y[:, None] / size)).solution[:, 0]
    if not agrees(y, basis @ weights):
        return None
    return source, dict(zip(MIXED, weights.tolist(), strict=True))


def _crosses(graph: CapturedGraph, node: Node) -> bool:
    if is_noise(graph, node):
        return True
    name = opname(node)
    if name in UNARY:
        return True
    if name in ("min", "max"):
        return getattr(node.target, "_overloadname", "") == "other" and _are_operands(graph, node, 2)
    if name == "where":
        return _are_operands(graph, node, 3)
    return name in BINARY and _are_operands(graph, node, 2)


def _are_operands(graph: CapturedGraph, node: Node, count: int) -> bool:
    return all(_is_operand(graph, node, value) for value in node.args[:count])


def _is_operand(graph: CapturedGraph, node: Node, value: object) -> bool:
    """Return True for a live tensor of the node's own shape, or a number."""
    if isinstance(value, Node) and value in graph.live:
        return all(graph.shape(value, *probe) == graph.shape(node, *probe) for probe in PROBES)
    return scalar(graph, value) is not None


def probe(graph: CapturedGraph, node: Node, source: Node) -> Tensor:
    """Return the values of the region from `source` to `node` at `POINTS`, in fp64."""
    constants = graph.evaluator(1, POINTS.numel())
    memory = {source: POINTS}

    def value(inner: Node) -> Tensor:
        if inner not in graph.live:
            return constants(inner).reshape(())
        inner = peel(graph, inner)
        if inner not in memory:
            memory[inner] = execute(inner, value, torch.float64)
        return memory[inner]

    return value(node)


def agrees(a: Tensor, b: Tensor) -> bool:
    """Return True if a is b, up to `TOLERANCE` of the larger of b and 1."""
    return bool(((a - b).abs() <= TOLERANCE * b.abs().clamp(min=1)).all())
