"""Products of a vector with numbers that some of its coordinates share: one for each token, or one for each head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.elementwise import named_region
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.layouts import VectorLayout, vector_layout
from tintc.frontend.graph.node_queries import single_sources
from tintc.frontend.graph.regions import moves
from tintc.frontend.rule import NOT_MINE, Fail, Match
from tintc.frontend.rules.columns import columns_of
from tintc.ir.auxiliary import Activation, Multiply
from tintc.ir.core import Value, tokens


@dataclass(frozen=True)
class SharedFactors:
    """``vector * f(source)``, each number of the source beside several coordinates of the vector.

    activated: the node of ``f(source)``, the source itself if fn, the name of f, is empty; columns: for every
    coordinate of the vector, that of the source.
    """

    vector: Node
    activated: Node
    source: Node
    fn: str
    columns: tuple[int, ...]


class SharedFactorRule:
    """`SharedFactors` -> `aux.select` of the source's number for every coordinate, `aux.activation`, `aux.multiply`."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        factors = shared_factors(graph, node)
        if factors is None:
            return NOT_MINE
        kind = tokens(len(factors.columns))

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            vector, source = values
            spread = builder.select(node, source, factors.columns, "factors")
            if factors.fn:
                spread = builder.emit(Activation, node, (spread,), kind, factors.fn, fn=factors.fn)
            return builder.emit(Multiply, node, (vector, spread), kind, "multiply")

        return Match((factors.vector, factors.source), build)


def shared_factors(graph: CapturedGraph, node: Node) -> SharedFactors | None:
    """Return what a product consists of; None if it is anything else."""
    layout = vector_layout(graph, node)
    if opname(node) != "mul" or node not in graph.live or layout is None:
        return None
    for vector, number in (node.args[:2], node.args[1::-1]):
        if not isinstance(vector, Node) or not isinstance(number, Node) or number not in graph.live:
            continue
        shared = vector_layout(graph, number)
        if vector_layout(graph, vector) != layout or shared is None or not _repeats(shared, layout):
            continue
        moved = [number, *single_sources(graph, number, moves)]
        activated = [behind for behind in moved if vector_layout(graph, behind) is not None][-1]
        columns = columns_of(graph, number, (activated,))
        if columns is not None:
            source, fn = named_region(graph, activated) or (activated, "")
            taken = torch.tensor(columns).view(shared.sizes).expand(layout.sizes).flatten()
            return SharedFactors(vector, activated, source, fn, tuple(taken.tolist()))
    return None


def _repeats(shared: VectorLayout, layout: VectorLayout) -> bool:
    """Return True if a value of one layout has fewer numbers for each token and is repeated to the other."""
    same = (shared.batch, shared.length, len(shared.sizes)) == (layout.batch, layout.length, len(layout.sizes))
    pairs = zip(shared.sizes, layout.sizes, strict=False)
    return same and shared.width < layout.width and all(a in (1, b) for a, b in pairs)
