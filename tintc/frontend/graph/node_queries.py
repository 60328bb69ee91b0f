"""Looking at nodes: what is noise, what is a scalar, what holds one vector per token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname

COPIES = frozenset({"alias", "detach", "detach_", "contiguous", "clone", "lift_fresh_copy"})
CASTS = frozenset({"_to_copy", "to", "type_as"})
VIEWS = frozenset(
    {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "expand", "broadcast_to", "squeeze", "unsqueeze"}
    | {"view_as", "reshape_as", "expand_as"}
)
ADDS = frozenset({"add", "sub"})
PRODUCTS = frozenset({"mul", "div"})
PROBES = ((5, 7), (3, 11))
"""Batch sizes and lengths at which symbolic shapes are read; no two products of them agree by accident."""


def sizes(graph: CapturedGraph) -> tuple[tuple[int, int], ...]:
    """`PROBES` and the longest text: where numbers are read that must be the same in every text. What begins to change
    at a later position, or from some length on, shows at the last alone."""
    return (*PROBES, (1, graph.max_length))


def rows_width(graph: CapturedGraph, node: Node) -> int | None:
    """W if the node holds one vector of W floats per token, as ``[B, T, W]``, ``[1, T, W]`` or ``[B * T, W]``."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2:
        return None
    width = value.shape[-1]
    if not isinstance(width, int):
        return None
    for batch, length in PROBES:
        shape = graph.shape(node, batch, length)
        if shape is None or shape[:-1] not in ((batch, length), (1, length), (batch * length,)):
            return None
    return width


def scalar(graph: CapturedGraph, value: Any) -> float | None:
    """The number a node or argument is, None if it is not one number for every batch and length."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, Node) or value in graph.live or not _single(graph, value):
        return None
    results = {float(graph.evaluate(value, *size)) for size in sizes(graph)}
    return results.pop() if len(results) == 1 else None


def _single(graph: CapturedGraph, node: Node) -> bool:
    shapes = [graph.shape(node, batch, length) for batch, length in PROBES]
    return all(shape is not None and math.prod(shape) == 1 for shape in shapes)


def peel(graph: CapturedGraph, node: Node) -> Node:
    """The node behind everything that changes neither values nor which token they belong to."""
    while True:
        inner = _behind(graph, node)
        if inner is None:
            return node
        node = inner


def is_noise(graph: CapturedGraph, node: Node) -> bool:
    return _behind(graph, node) is not None


def _behind(graph: CapturedGraph, node: Node) -> Node | None:
    """One layer of noise removed, or None if the node does something."""
    name = opname(node)
    source = node.args[0] if node.args else None
    if not isinstance(source, Node):
        return _behind_neutral(graph, node) if name in ADDS | PRODUCTS else None
    if name in COPIES:
        return source
    if name in CASTS:
        return source if _keeps_kind(source, node) else None
    if name == "dropout" and node.args[2] is False:
        return source
    if name == "slice":
        return source if _same_shape(graph, source, node) else None
    if name in VIEWS:
        return source if _keeps_rows(graph, source, node) else None
    if name in ADDS | PRODUCTS:
        return _behind_neutral(graph, node)
    return None


def _behind_neutral(graph: CapturedGraph, node: Node) -> Node | None:
    """x of x + 0, 0 + x, x - 0, x * 1, 1 * x and x / 1."""
    name, neutral = opname(node), 0.0 if opname(node) in ADDS else 1.0
    left, right = node.args[0], node.args[1]
    if isinstance(left, Node) and scalar(graph, right) == neutral:
        return left
    if isinstance(right, Node) and name in ("add", "mul") and scalar(graph, left) == neutral:
        return right
    return None


def _keeps_kind(source: Node, node: Node) -> bool:
    """Casts between float types are dropped: the program computes in one dtype."""
    before, after = source.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    return before.dtype == after.dtype or (before.is_floating_point() and after.is_floating_point())


def _same_shape(graph: CapturedGraph, source: Node, node: Node) -> bool:
    return all(graph.shape(source, *probe) == graph.shape(node, *probe) for probe in PROBES)


def _keeps_rows(graph: CapturedGraph, source: Node, node: Node) -> bool:
    """Views that merge or split batch and length, or broadcast over the batch; the token ids' own views too."""
    if _same_shape(graph, source, node):
        return True
    width = rows_width(graph, source)
    return width is not None and width == rows_width(graph, node)


def single_sources(graph: CapturedGraph, node: Node, crosses: Callable[[Node], bool]) -> list[Node]:
    """Live nodes, nearest first, each of which alone determines `node` through operations that `crosses` accepts.

    The pool holds the live nodes reached so far; the last in graph order is replaced by its live inputs. Whenever one
    node is left in the pool, everything below depends on the tokens through it alone.
    """
    pool, found = {node}, []
    while True:
        last = max(pool, key=graph.order.__getitem__)
        if not crosses(last):
            return found
        pool.remove(last)
        pool.update(graph.live_inputs(last))
        if not pool:
            return found
        if len(pool) == 1:
            found.append(next(iter(pool)))


def constant_vector(graph: CapturedGraph, value: Any) -> str | None:
    """Name of a tensor that is the value for every batch and length: a parameter or buffer, as `parameter_vector`, or
    what the graph computes from one parameter, such as 1 + gain. None if the value is anything else."""
    name = parameter_vector(graph, value)
    if name is not None or not isinstance(value, Node) or value in graph.live:
        return name
    shapes = {graph.shape(value, *probe) for probe in PROBES}
    if len(_parameters_behind(graph, value)) != 1 or len(shapes) != 1 or None in shapes:
        return None
    found = constant_value(graph, value)
    if found is None:
        return None
    while found.dim() > 1 and found.shape[0] == 1:
        found = found[0]
    return constant_name(graph, value, "computed", found)


def constant_value(graph: CapturedGraph, node: Node) -> Tensor | None:
    """The tensor that a node holds, if it is not live and the same for every batch and length."""
    if len({graph.shape(node, *size) for size in sizes(graph)}) > 1:
        return None
    first, *others = (graph.evaluate(node, *size) for size in sizes(graph))
    return first if all(torch.equal(first, other) for other in others) else None


def constant_name(graph: CapturedGraph, node: Node, stem: str, tensor: Tensor) -> str:
    """Keep what a node holds under the name of the one parameter or buffer that it is made of, else under `stem`."""
    origins = _parameters_behind(graph, node) or _tensors_behind(graph, node)
    if len(origins) == 1:
        return graph.derive_from(origins.pop(), tensor)
    return graph.derive_constant(stem, tensor)


def _parameters_behind(graph: CapturedGraph, node: Node) -> set[str]:
    return _tensors_behind(graph, node) & graph.parameter_names


def _tensors_behind(graph: CapturedGraph, node: Node) -> set[str]:
    found: set[str] = set()
    stack, seen = [node], {node}
    while stack:
        at = stack.pop()
        if at in graph.names:
            found.add(graph.names[at])
        sources = [source for source in at.all_input_nodes if source not in seen]
        seen.update(sources)
        stack.extend(sources)
    return found


def parameter_vector(graph: CapturedGraph, value: Any) -> str | None:
    """Name of the parameter or buffer behind casts and copies, None if the value is anything else."""
    while isinstance(value, Node) and opname(value) in COPIES | CASTS and isinstance(value.args[0], Node):
        value = value.args[0]
    return graph.tensor_name(value)
