"""Mixtures that multiply every token with every expert: recognised in an exported graph by what the operations do.

Such a graph repeats the tokens for each expert, multiplies them by weights that are zero where an expert is not chosen,
and sums two products with stacks of matrices, and a function between them, over the experts::

    y_t = sum_e W2_e gate(W1_e (r_te x_t))        gate(0) = 0

One node of `CapturedExperts` takes the place of the sum.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.captured_experts import CapturedExperts, traced_gate
from tintc.frontend.graph.evaluation import execute, opname
from tintc.frontend.graph.node_queries import CASTS, COPIES, PROBES, VIEWS, rows_width
from tintc.frontend.graph.regions import Signatures, between, leaves, moves, push

STACKED = frozenset({"bmm", "matmul"})
"""Products of ``[E, n, in]`` with a stack of matrices."""
PRODUCTS = STACKED | {"linear", "addmm", "mm", "baddbmm", "einsum"}
TOLERANCE = 1e-12
"""Relative, in fp64, between what operations do and what they are taken for."""


@dataclass(frozen=True)
class _Product:
    """``source [E, n, in]`` times a stack of matrices: a parameter ``[E, in, out]`` if is_transposed, ``[E, out, in]``
    if not."""

    node: Node
    source: Node
    parameter: Node
    is_transposed: bool

    def widths(self) -> tuple[int, int, int]:
        """Return E, in and out."""
        experts, a, b = self.parameter.meta["val"].shape
        if self.is_transposed:
            return experts, a, b
        return experts, b, a


@dataclass(frozen=True)
class _Mixture:
    """A sum over experts; x ``[n, D]`` and weights ``[n, E]``: what the first product's input is made of."""

    x: Node
    weights: Node
    up: _Product
    down: _Product


def with_dense_experts(graph: CapturedGraph) -> CapturedGraph:
    """Return the graph, changed in place, with a node of `CapturedExperts` for every mixture that is recognised."""
    sums = [node for node in graph.module.graph.nodes if opname(node) == "sum" and node in graph.live]
    mixtures = {node: mixture for node in sums if (mixture := _mixture(graph, node)) is not None}
    gates: dict[Hashable, CapturedGraph | None] = {}
    signatures = Signatures(graph)
    replaced = False
    for node, mixture in mixtures.items():
        up, down = mixture.up, mixture.down
        key = signatures.of(down.source, (up.node,))
        if key not in gates:
            gates[key] = _gate(graph, up, down)
        gate = gates[key]
        if gate is not None:
            _replace(graph, node, mixture, CapturedExperts(gate, up.is_transposed, False, scales_input=True))
            replaced = True
    if not replaced:
        return graph
    # What is cached of a graph is of the old nodes.
    return replace(graph)


def _mixture(graph: CapturedGraph, node: Node) -> _Mixture | None:
    """Return what a sum consists of; None if it is anything else."""
    down = _stacked(graph, _behind_moves(graph, node.args[0]))
    if down is None or node.meta["val"].dim() != 2:
        return None
    nearest = leaves(graph, down.source, lambda behind: opname(behind) not in PRODUCTS)
    up = None
    if len(nearest) == 1:
        up = _stacked(graph, nearest[0])
    if up is None or up.is_transposed != down.is_transposed or up.widths()[0] != down.widths()[0]:
        return None
    scaled = _behind_moves(graph, up.source)
    if scaled is None or opname(scaled) != "mul" or not _sums_experts(graph, node, down):
        return None
    experts, width, _ = up.widths()
    for vectors, numbers in (scaled.args[:2], scaled.args[1::-1]):
        x = _rows_behind(graph, vectors, width)
        weights = _rows_behind(graph, numbers, experts)
        if x is not None and weights is not None and _same_shape(graph, x, node) and _scales(graph, up, x, weights):
            return _Mixture(x, weights, up, down)
    return None


def _stacked(graph: CapturedGraph, node: Node | None) -> _Product | None:
    """Return the product with a stack of matrices that a node is; None if it is anything else."""
    if node is None or opname(node) not in STACKED:
        return None
    source, stack = node.args[:2]
    parameter = _uncast(stack)
    is_transposed = True
    if isinstance(parameter, Node) and opname(parameter) == "transpose":
        dims = {int(str(dim)) % 3 for dim in parameter.args[1:]}
        is_transposed = dims != {1, 2}
        parameter = _uncast(parameter.args[0])
    if not isinstance(source, Node) or not isinstance(parameter, Node) or source not in graph.live:
        return None
    name = graph.tensor_name(parameter)
    if name not in graph.parameter_names or parameter.meta["val"].dim() != 3 or source.meta["val"].dim() != 3:
        return None
    product = _Product(node, source, parameter, is_transposed)
    if node.meta["val"].shape[-1] != product.widths()[2]:
        return None
    return product


def _uncast(value: Any) -> Any:
    while isinstance(value, Node) and opname(value) in COPIES | CASTS:
        value = value.args[0]
    return value


def _behind_moves(graph: CapturedGraph, value: Any) -> Node | None:
    """Return the nearest node behind operations that move numbers of one value."""
    while isinstance(value, Node) and value in graph.live:
        live = graph.live_inputs(value)
        if not moves(value) or len(live) != 1:
            return value
        value = live[0]
    return None


def _rows_behind(graph: CapturedGraph, value: Any, width: int) -> Node | None:
    """Return the nearest node ``[n, width]`` behind operations that move numbers; None if there is none."""
    while isinstance(value, Node) and value in graph.live:
        if rows_width(graph, value) == width and value.meta["val"].dim() == 2:
            return value
        live = graph.live_inputs(value)
        if not moves(value) or len(live) != 1:
            return None
        value = live[0]
    return None


def _same_shape(graph: CapturedGraph, a: Node, b: Node) -> bool:
    return all(graph.shape(a, *probe) == graph.shape(b, *probe) for probe in PROBES)


def _sums_experts(graph: CapturedGraph, node: Node, down: _Product) -> bool:
    """Return True if the node is the sum of the product ``[E, n, D]`` over the experts."""
    values = _random(graph, down.node)
    return values is not None and _pushed(graph, node, {down.node: values}, values.sum(0))


def _scales(graph: CapturedGraph, up: _Product, x: Node, weights: Node) -> bool:
    """Return True if what the first product reads is ``r_te x_t``."""
    vectors = _random(graph, x)
    numbers = _random(graph, weights)
    if x is weights or vectors is None or numbers is None:
        return False
    return _pushed(graph, up.source, {x: vectors, weights: numbers}, numbers.T[..., None] * vectors)


def _pushed(graph: CapturedGraph, root: Node, values: dict[Node, Tensor], wanted: Tensor) -> bool:
    """Return True if the root has the wanted value when these nodes have theirs."""
    behind = between(graph, root, values)
    if graph.input_ids in behind or any(graph.weighted.intersection(node.all_input_nodes) for node in behind):
        return False
    found = push(graph, root, values, *PROBES[0])
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= TOLERANCE * wanted.abs().max())


def _random(graph: CapturedGraph, node: Node) -> Tensor | None:
    """Return random numbers for a node; None if its shape depends on more than the batch and the length."""
    shape = graph.shape(node, *PROBES[0])
    if shape is None:
        return None
    generator = torch.Generator().manual_seed(graph.order[node])
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(graph.input_ids.meta["val"].device)


class _Region(nn.Module):
    """What lies between two nodes as a function of the first, whatever its first two sizes are."""

    def __init__(self, nodes: list[Node], source: Node, root: Node):
        super().__init__()
        self.nodes, self.source, self.root = nodes, source, root

    def forward(self, hidden: Tensor) -> Tensor:
        values: dict[Node, Any] = {self.source: hidden}
        for node in self.nodes:
            values[node] = execute(node, values.__getitem__, None)
        return values[self.root]


def _gate(graph: CapturedGraph, up: _Product, down: _Product) -> CapturedGraph | None:
    """Return the graph of what is between two products, from ``[B, T, F]``; None if it is no function of each vector
    alone, or is not 0 at 0."""
    nodes = between(graph, down.source, (up.node,))
    known = {up.node, *nodes}
    if any(opname(node) in VIEWS or not known.issuperset(node.all_input_nodes) for node in nodes):
        return None
    gate = traced_gate(_Region(nodes, up.node, down.source), up.node.meta["val"], up.widths()[2])
    values = _random(graph, up.node)
    if gate is None or values is None:
        return None
    values[:, 0] = 0
    experts = CapturedExperts(gate, up.is_transposed, False, scales_input=True)
    wanted = torch.stack([experts.run_gate(vectors) for vectors in values])
    if wanted[:, 0].any() or not _pushed(graph, down.source, {up.node: values}, wanted):
        return None
    return gate


def _replace(graph: CapturedGraph, node: Node, mixture: _Mixture, experts: CapturedExperts) -> None:
    """Put a node of experts in place of a sum, and remove what no other node reads then."""
    nodes = graph.module.graph
    with nodes.inserting_before(node):
        args = (mixture.x, None, mixture.weights, mixture.up.parameter, mixture.down.parameter)
        made = nodes.call_function(experts, args)
    made.meta.update(node.meta)
    node.replace_all_uses_with(made)
    for old in reversed([*between(graph, node, (mixture.x, mixture.weights))]):
        if not old.users:
            nodes.erase_node(old)
