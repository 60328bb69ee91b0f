"""Obstacles: kinds of layers that tintc does not support, in the words that a model's users have for them.

A rule that refuses an operation names its obstacle, where it can tell what the operation belongs to (`Fail.obstacle`);
others show only in the graph as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torch.fx import Node

from tintc.errors import Reason
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.captured_experts import CapturedExperts
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.node_queries import PROBES
from tintc.frontend.graph.obstacle_words import (
    ACTIVATION,
    CONVOLUTION,
    DEPENDENT_SIZES,
    EXPERTS,
    LOOPED_EXPERTS,
    NO_RULE,
    PRODUCTS,
    STATE_SPACE,
    STREAMS,
    UNKNOWN,
    VECTORS,
)

GROUPED = frozenset({"grouped_mm", "_grouped_mm", "grouped_mm_fallback"})
"""Products of every token with the weights of its own expert."""
MATRIX_PRODUCTS = frozenset({"matmul", "bmm"})
"""Products of two values."""


def obstacles(graph: CapturedGraph, reasons: Sequence[Reason]) -> tuple[str, ...]:
    """Return the obstacles in a graph, for a first line above the reasons why its operations are not taken."""
    named = [reason.obstacle for reason in reasons]
    if any(name != ACTIVATION for name in named):  # one of many odd functions is part of something else
        named = [name for name in named if name != ACTIVATION]
    kinds = list(dict.fromkeys(filter(None, [*_in_the_whole(graph, reasons), *named])))
    if not kinds:
        kinds = _of_operations(graph, reasons)
    return tuple(kinds)


def _of_operations(graph: CapturedGraph, reasons: Sequence[Reason]) -> list[str]:
    """Return what operations are that no rule takes, as far as they themselves show it."""
    unknown = [(reason.where, reason.what.removeprefix("aten.")) for reason in reasons if reason.why == NO_RULE]
    nodes = [node for node in graph.live if (graph.where(node), opname(node)) in unknown]
    if any(
        opname(node) in MATRIX_PRODUCTS and all(one in graph.live for one in node.all_input_nodes) for node in nodes
    ):
        return [PRODUCTS]
    if any(_is_matrix(one) for node in nodes for one in (node, *node.all_input_nodes)):
        return [VECTORS]
    names = dict.fromkeys(name for _, name in unknown)
    return [f"{UNKNOWN} ({', '.join(names)})"] * bool(names)


def obstacle_of_sizes(model: nn.Module) -> str:
    """Return the obstacle in a model that has no graph because sizes depend on what the tokens are."""
    if any("expert" in path for path, _ in model.named_modules()):
        return LOOPED_EXPERTS
    return DEPENDENT_SIZES


def _in_the_whole(graph: CapturedGraph, reasons: Sequence[Reason]) -> Iterator[str]:
    """Yield the obstacles that one operation alone does not show."""
    places = {reason.where for reason in reasons}
    live = [node for node in graph.live if node.op == "call_function"]
    known = any(isinstance(node.target, CapturedExperts) for node in live)
    if not known and any(opname(node) in GROUPED or "expert" in graph.path(node) for node in live):
        yield EXPERTS
    if any(opname(node) in ("conv1d", "convolution") for node in live):
        yield CONVOLUTION
    elif any(_sums_tokens(node) for node in live):
        yield STATE_SPACE
    elif any(_mixes_streams(graph, node) for node in live if graph.where(node) in places):
        yield STREAMS


def _mixes_streams(graph: CapturedGraph, node: Node) -> bool:
    """Return True for a product of two matrices of one token each, which both depend on it."""
    if opname(node) not in MATRIX_PRODUCTS or not all(source in graph.live for source in node.all_input_nodes):
        return False
    shapes = [graph.shape(source, *PROBES[0]) for source in node.all_input_nodes]
    return len(shapes) == 2 and all(shape is not None and shape[:-2] == PROBES[0] for shape in shapes)


def _is_matrix(node: Node) -> bool:
    """Return True for a value of four dimensions, which has a matrix for every token."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() == 4


def _sums_tokens(node: Node) -> bool:
    """Return True for a running sum of floats."""
    value = node.meta.get("val")
    return opname(node) == "cumsum" and isinstance(value, Tensor) and value.is_floating_point()
