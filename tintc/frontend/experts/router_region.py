"""The region of a graph between a router's logits and the experts that it chooses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.experts.routing import ROWS, Behaviour, options_of, random_logits, random_vector
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.node_queries import PROBES, constant_name, constant_value, peel, rows_width, scalar
from tintc.frontend.graph.regions import between, push_all
from tintc.ir.router import RouterOptions

PRODUCTS = frozenset({"linear", "addmm", "mm", "matmul", "bmm", "einsum"})
LENGTH = 8
"""Tokens of each text on which a region is evaluated."""


@dataclass(frozen=True)
class Routing:
    """A router that was recognised. logits: the node ``[.., E]`` that it reads; options: its vectors have names that
    hold within the region; vectors: by these, the names of tensors of the graph."""

    logits: Node
    options: RouterOptions
    vectors: dict[str, str]


def find_routing(
    graph: CapturedGraph, index: Node | None, weights: Node, experts: int, likely: Iterable[RouterOptions] = ()
) -> Routing | None:
    """Return the routing that chooses ``index [n, k]`` with ``weights [n, k]`` among `experts`; None for one that is
    not known.

    Without an index the weights are ``[n, E]``, zero for experts that are not chosen. likely: see `options_of`.
    """
    roots = (weights,)
    if index is not None:
        roots = (index, weights)
    for logits in _logits(graph, roots, experts):
        seen, vectors = _behaviour(graph, logits, roots, experts)
        options = options_of(seen, likely)
        if options is not None:
            names = {name: _named(graph, vectors[name]) for name in options.vectors().values()}
            return Routing(logits, options, names)
    return None


def _logits(graph: CapturedGraph, roots: Sequence[Node], experts: int) -> list[Node]:
    """Return the nodes of E numbers for each token through which alone the routing depends on the tokens, the farthest
    first: a product with the router's matrix, and what is made of it."""
    found: list[Node] = []
    pool = set(roots)
    while pool:
        last = max(pool, key=graph.order.__getitem__)
        if len(pool) == 1 and last not in roots and rows_width(graph, last) == experts:
            node = peel(graph, last)
            if node not in found:
                found.append(node)
        if last.op != "call_function" or opname(last) in PRODUCTS:
            break
        pool.remove(last)
        pool.update(graph.live_inputs(last))
    return found[::-1]


def _behaviour(
    graph: CapturedGraph, logits: Node, roots: Sequence[Node], experts: int
) -> tuple[Behaviour, dict[str, Node]]:
    """Return what the region does on random logits, and the nodes of its vectors by the names that they have there."""
    batch = ROWS // LENGTH
    z = random_logits(experts).to(graph.input_ids.meta["val"].device)
    shape = graph.shape(logits, batch, LENGTH)
    assert shape is not None
    vectors: dict[str, Node] = {}
    values: dict[Node, Tensor] = {logits: z.reshape(shape)}
    numbers: dict[float, None] = {}
    for node in _constants(graph, logits, roots, numbers):
        if _is_vector(graph, node, experts) and node not in values:
            name = str(len(vectors))
            values[node] = random_vector(experts, len(vectors)).to(z.device).reshape(node.meta["val"].shape)
            vectors[name] = node
    *index, weighed = push_all(graph, roots, values, batch, LENGTH)
    dense = weighed.to(z.dtype).reshape(len(weighed), -1)
    if index:
        dense = torch.zeros_like(z).scatter(-1, index[0], dense)
    chosen = int((dense != 0).sum(-1).max())
    if index:
        chosen = index[0].shape[-1]
    by_name = {name: values[node].flatten() for name, node in vectors.items()}
    return Behaviour(z, dense, chosen, tuple(numbers), by_name), vectors


def _constants(graph: CapturedGraph, logits: Node, roots: Sequence[Node], numbers: dict[float, None]) -> Iterator[Node]:
    """Yield the nodes that the region reads and that do not depend on the tokens; add its numbers, and the sizes of its
    values."""
    for root in roots:
        for node in between(graph, root, (logits,)):
            for value in _flat([*node.args, *node.kwargs.values(), *_sizes(graph, node)]):
                number = None
                if not isinstance(value, str):
                    number = scalar(graph, value)
                if number is not None and math.isfinite(number):
                    numbers[number] = None
                if number is None and isinstance(value, Node) and value not in graph.live:
                    yield value


def _sizes(graph: CapturedGraph, node: Node) -> tuple[int, ...]:
    if not isinstance(node.meta.get("val"), Tensor):
        return ()
    return graph.shape(node, *PROBES[0]) or ()


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _is_vector(graph: CapturedGraph, node: Node, experts: int) -> bool:
    """Return True for one number an expert, that is a tensor of the model or made of some."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    sizes = {graph.shape(node, *probe) for probe in PROBES}
    (shape, *others) = sizes
    if others or shape is None or sorted(shape) != [1] * (len(shape) - 1) + [experts]:
        return False
    return opname(node) not in ("zeros", "ones", "full") and constant_value(graph, node) is not None


def _named(graph: CapturedGraph, node: Node) -> str:
    """Return the name of a vector over the experts, ``[E]``."""
    name = graph.tensor_name(node)
    if name is not None and graph.tensors[name].dim() == 1:
        return name
    value = constant_value(graph, node)
    assert value is not None
    return constant_name(graph, node, "routing", value.flatten())
