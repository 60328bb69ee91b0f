"""Questions to nodes: which are noise, which are one number, which hold one vector per token."""

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
    """Return `PROBES` and the longest text: where numbers are read that must be the same in every text.

    What begins to change at a later position, or from some length on, shows at the last alone.
    """
    return (*PROBES, (1, graph.max_length))


def argument(node: Node, index: int, default: Any) -> Any:
    """Return a positional argument of a node's operation; the default if the call has fewer."""
    return dict(enumerate(node.args)).get(index, default)


def rows_width(graph: CapturedGraph, node: Node) -> int | None:
    """Return W if the node holds W floats per token; None if it does not.

    Its shape is ``[B, T, W]`` or ``[B * T, W]``, or, the same in every text, ``[1, T, W]`` or ``[T, W]``.
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2:
        return None
    width = value.shape[-1]
    if not isinstance(width, int):
        return None
    for batch, length in PROBES:
        shape = graph.shape(node, batch, length)
        if shape is None or shape[:-1] not in ((batch, length), (1, length), (length,), (batch * length,)):
            return None
    return width


def scalar(graph: CapturedGraph, value: Any) -> float | None:
    """Return the number a node or argument is; None if it is not one number for every batch and length."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, Node) or value in graph.live or not _single(graph, value):
        return None
    numbers = {float(graph.evaluate(value, *size)) for size in sizes(graph)}
    if len(numbers) > 1:
        return None
    return numbers.pop()


def _single(graph: CapturedGraph, node: Node) -> bool:
    shapes = [graph.shape(node, batch, length) for batch, length in PROBES]
    return all(shape is not None and math.prod(shape) == 1 for shape in shapes)


def peel(graph: CapturedGraph, node: Node) -> Node:
    """Return the node behind everything that changes neither values nor which token they belong to."""
    while True:
        inner = _behind(graph, node)
        if inner is None:
            return node
        node = inner


def is_noise(graph: CapturedGraph, node: Node) -> bool:
    """Return True if the node adds nothing: a cast, a copy, or the like."""
    return _behind(graph, node) is not None


def _behind(graph: CapturedGraph, node: Node) -> Node | None:
    """Return the node behind one layer of noise, or None if the node does something."""
    name = opname(node)
    if name in ADDS:
        return _behind_neutral(graph, node, 0.0)
    if name in PRODUCTS:
        return _behind_neutral(graph, node, 1.0)
    source = argument(node, 0, None)
    if isinstance(source, Node) and _changes_nothing(graph, name, source, node):
        return source
    return None


def _changes_nothing(graph: CapturedGraph, name: str, source: Node, node: Node) -> bool:
    if name in COPIES:
        return True
    if name in CASTS:
        return _keeps_kind(source, node)
    if name == "dropout":
        return node.args[2] is False
    if name == "slice":
        return _same_shape(graph, source, node)
    return name in VIEWS and _keeps_rows(graph, source, node)


def _behind_neutral(graph: CapturedGraph, node: Node, neutral: float) -> Node | None:
    """Return x of x + 0, 0 + x, x - 0, x * 1, 1 * x and x / 1, and of x times a mask of the padding."""
    name = opname(node)
    left, right = node.args[:2]
    if name == "mul":
        for x, mask in ((left, right), (right, left)):
            if isinstance(x, Node) and x in graph.live and _same_shape(graph, x, node) and _masks_padding(graph, mask):
                return x
    if isinstance(left, Node) and scalar(graph, right) == neutral:
        return left
    if isinstance(right, Node) and name in ("add", "mul") and scalar(graph, left) == neutral:
        return right
    return None


def _masks_padding(graph: CapturedGraph, value: Any) -> bool:
    """Return True for numbers, one for each token, that are ones in every text without padding.

    What reads earlier tokens leaves padding out by itself.
    """
    if not isinstance(value, Node) or value in graph.live or value in graph.weighted:
        return False
    if value not in graph.ones:
        shapes = [graph.shape(value, *probe) for probe in PROBES]
        by_token = all(shape is not None and length in shape for shape, (_, length) in zip(shapes, PROBES, strict=True))
        graph.ones[value] = by_token and all(bool((graph.evaluate(value, *size) == 1).all()) for size in sizes(graph))
    return graph.ones[value]


def _keeps_kind(source: Node, node: Node) -> bool:
    """Return True for casts between float types, which are dropped: the program computes in one dtype."""
    before, after = source.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    return before.dtype == after.dtype or (before.is_floating_point() and after.is_floating_point())


def _same_shape(graph: CapturedGraph, source: Node, node: Node) -> bool:
    return all(graph.shape(source, *probe) == graph.shape(node, *probe) for probe in PROBES)


def _keeps_rows(graph: CapturedGraph, source: Node, node: Node) -> bool:
    """Return True for views that merge or split batch and length, or broadcast over the batch, of the ids too."""
    if _same_shape(graph, source, node):
        return True
    width = rows_width(graph, source)
    return width is not None and width == rows_width(graph, node)


def single_sources(graph: CapturedGraph, node: Node, crosses: Callable[[Node], bool]) -> list[Node]:
    """Return live nodes, nearest first, each of which alone determines `node` through operations that `crosses` takes.

    The pool holds the live nodes reached so far; the last in graph order is replaced by its live inputs. Whenever one
    node is left in the pool, everything below depends on the tokens through it alone.
    """
    pool = {node}
    single: list[Node] = []
    while pool:
        last = max(pool, key=graph.order.__getitem__)
        if not crosses(last):
            break
        pool.remove(last)
        pool.update(graph.live_inputs(last))
        if len(pool) == 1:
            single.extend(pool)
    return single


def constant_vector(graph: CapturedGraph, value: Any) -> str | None:
    """Return the name of a tensor that is the value for every batch and length; None if there is none.

    It is a parameter or buffer, as of `parameter_vector`, or what the graph computes from one parameter, such as
    1 + gain.
    """
    name = parameter_vector(graph, value)
    if name is not None or not isinstance(value, Node) or value in graph.live:
        return name
    shapes = {graph.shape(value, *probe) for probe in PROBES}
    if len(_parameters_behind(graph, value)) != 1 or len(shapes) != 1 or None in shapes:
        return None
    tensor = constant_value(graph, value)
    if tensor is None:
        return None
    while tensor.dim() > 1 and tensor.shape[0] == 1:
        tensor = tensor[0]
    return constant_name(graph, value, "computed", tensor)


def constant_value(graph: CapturedGraph, node: Node) -> Tensor | None:
    """Return the tensor that a node, which is not live, holds for every batch and length; None if it differs."""
    if len({graph.shape(node, *size) for size in sizes(graph)}) > 1:
        return None
    first, *others = (graph.evaluate(node, *size) for size in sizes(graph))
    if any(not torch.equal(first, other) for other in others):
        return None
    return first


def constant_name(graph: CapturedGraph, node: Node, stem: str, tensor: Tensor) -> str:
    """Keep the tensor that a node holds, and return its name.

    It is made of the name of the one parameter or buffer that the node is computed from, else of `stem`.
    """
    origins = _parameters_behind(graph, node) or _tensors_behind(graph, node)
    if len(origins) == 1:
        return graph.derive_from(origins.pop(), tensor)
    return graph.derive_constant(stem, tensor)


def _parameters_behind(graph: CapturedGraph, node: Node) -> set[str]:
    return _tensors_behind(graph, node) & graph.parameter_names


def _tensors_behind(graph: CapturedGraph, node: Node) -> set[str]:
    names: set[str] = set()
    seen = {node}
    stack = [node]
    while stack:
        behind = stack.pop()
        if behind in graph.names:
            names.add(graph.names[behind])
        sources = [source for source in behind.all_input_nodes if source not in seen]
        seen.update(sources)
        stack.extend(sources)
    return names


def parameter_vector(graph: CapturedGraph, value: Any) -> str | None:
    """Return the name of the parameter or buffer behind casts and copies; None if the value is anything else."""
    while isinstance(value, Node) and opname(value) in COPIES | CASTS and isinstance(value.args[0], Node):
        value = value.args[0]
    return graph.tensor_name(value)
