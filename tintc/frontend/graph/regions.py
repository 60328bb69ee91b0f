"""Linear regions of a graph: what lies between a head's operand and the vectors it is cut from.

Between a projection and attention's scores a decoder only moves, scales and rotates numbers. Such a region is a linear
map, whatever operations spell it out; `push` evaluates it on chosen inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import execute, opname
from tintc.frontend.graph.node_queries import CASTS, COPIES, PROBES, VIEWS, is_noise

MOVES = frozenset(
    {"transpose", "permute", "t", "slice", "select", "split", "split_with_sizes", "chunk", "unbind", "getitem", "cat"}
    | {"stack", "repeat_interleave", "repeat", "movedim", "flip", "roll", "index_select", "index"}
    | {"concat", "concatenate"}
    | {"slice_scatter", "copy", "view_as_complex", "view_as_real"}
)
LAYOUT = COPIES | CASTS | VIEWS | MOVES
"""Operations that move numbers and change none."""


def moves(node: Node) -> bool:
    """Return True if the node moves numbers without changing them."""
    return opname(node) in LAYOUT


def is_linear(graph: CapturedGraph, node: Node) -> bool:
    """Return True if the node is a linear function of its live inputs, made without any parameter."""
    if moves(node) or is_noise(graph, node) or opname(node) in ("neg", "view_as_complex", "view_as_real"):
        return True
    live = [value for value in node.args[:2] if isinstance(value, Node) and value in graph.live]
    if opname(node) in ("add", "sub"):
        return len(live) == 2
    if opname(node) == "mul":
        return len(live) == 1 and not graph.weighted.intersection(node.all_input_nodes)
    return opname(node) == "div" and live == [node.args[0]] and not graph.weighted.intersection(node.all_input_nodes)


def push(graph: CapturedGraph, root: Node, values: Mapping[Node, Tensor], batch: int, length: int) -> Tensor:
    """Return the root's value in fp64 when the sources have these `values`, at that batch size and length.

    Everything between them must depend on the tokens through the sources alone.
    """
    return push_all(graph, (root,), values, batch, length)[0]


def push_all(
    graph: CapturedGraph, roots: Sequence[Node], values: Mapping[Node, Tensor], batch: int, length: int
) -> tuple[Tensor, ...]:
    """Return the same of several roots. Nodes that do not depend on the tokens may be given other values too."""
    constants = graph.evaluator(batch, length)
    memory: dict[Node, Any] = dict(values)

    def lookup(node: Node) -> Any:
        if node in memory:
            return memory[node]
        if node in graph.live:
            return graph.stand_in(node, batch, length)
        return constants(node)

    for root in roots:
        for node in between(graph, root, memory):
            memory[node] = execute(node, lookup, torch.float64)
    return tuple(memory[root] for root in roots)


def leaves(graph: CapturedGraph, root: Node, crosses: Callable[[Node], bool] | None = None) -> list[Node]:
    """Return the nearest nodes behind `root`, in graph order, that `crosses` does not accept.

    By default, those that are no linear function of what is behind them.
    """
    crosses = crosses or partial(is_linear, graph)
    stopped: set[Node] = set()
    seen = {root}
    stack = [root]
    while stack:
        node = stack.pop()
        if not crosses(node):
            stopped.add(node)
            continue
        stack.extend(source for source in graph.live_inputs(node) if source not in seen)
        seen.update(graph.live_inputs(node))
    return sorted(stopped, key=graph.order.__getitem__)


def between(graph: CapturedGraph, root: Node, sources: Collection[Node]) -> list[Node]:
    """Return the live nodes from the sources (excluded) to the root, in graph order."""
    region: set[Node] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if node in sources or node in region:
            continue
        region.add(node)
        stack.extend(graph.live_inputs(node))
    return sorted(region, key=graph.order.__getitem__)


class Signatures:
    """Numbers for sub-graphs: equal numbers compute the same function of the source they stop at.

    Thirty equal layers have equal regions, so what is read off one holds for all.
    """

    def __init__(self, graph: CapturedGraph):
        self._graph = graph
        self._numbers: dict[Hashable, int] = {}
        self._constants: dict[Node, int] = {}

    def of(self, root: Node, sources: Sequence[Node]) -> int:
        """Return the number of the region from sources to root; a source counts by its shape and place."""
        known: dict[Node, int] = {}

        def number(node: Node) -> int:
            if node in known:
                return known[node]
            return self._constant_or_shape(node)

        for place, source in enumerate(sources):
            shape = tuple(self._graph.shape(source, *probe) or () for probe in PROBES)
            known[source] = self._number(("source", place, shape))
        for node in between(self._graph, root, sources):
            known[node] = self._describe(node, number)
        return known[root]

    def constant(self, node: Node) -> int:
        """Return the number of a node that does not depend on the tokens."""
        if node not in self._constants:
            if node.op != "call_function" or node in self._graph.live:
                self._constants[node] = self._number(("leaf", self._graph.names.get(node), node.name))
            else:
                self._constants[node] = self._describe(node, self._constant_or_shape)
        return self._constants[node]

    def _constant_or_shape(self, node: Node) -> int:
        if node not in self._graph.live:
            return self.constant(node)
        return self._number(("shape", str(tuple(node.meta["val"].shape)), str(node.meta["val"].dtype)))

    def _describe(self, node: Node, number: Callable[[Node], int]) -> int:
        def entry(value: Any) -> str:
            if isinstance(value, Node):
                return f"#{number(value)}"
            return repr(value)

        return self._number((str(node.target), _text(node.args, entry), _text(node.kwargs, entry)))

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


def _text(arguments: Any, entry: Callable[[Any], str]) -> str:
    return repr(map_aggregate(arguments, entry))
