"""Moving coordinates with split operations: dimension-wise, split-wise, dimension-wise.

View an embedding as a matrix of H chunks (rows) by w columns. A dimension-wise operation moves entries within their
column, a split-wise one within their row. An entry at (h1, c1) that must reach (h2, c2) travels
``(h1, c1) -> (m, c1) -> (m, c2) -> (h2, c2)`` through an intermediate chunk m. No two entries may meet on the way: on
leaving column c1 they need different m, on entering column c2 as well. So m is a colour of the edge (c1, c2) in a
bipartite multigraph of source columns against target columns, and a proper edge colouring with as many colours as the
largest degree exists (Koenig). Adding and copying are free: several source chunks may feed one intermediate entry,
which may feed several target chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from tintc.ir.block_specs import SplitStage, TensorSpec


@dataclass(frozen=True)
class Move:
    """The sum of chunks `sources` at `column` goes to chunks `targets` at column `to`."""

    sources: tuple[int, ...]
    column: int
    targets: tuple[int, ...]
    to: int


def colour(edges: Sequence[tuple[int, int]]) -> list[int]:
    """Return a proper edge colouring of a bipartite multigraph, with as many colours as its largest degree.

    Koenig's proof as an algorithm: give the edge a colour free at its left end; if its right end uses it already, swap
    the two colours along the alternating path that starts there, which never reaches the left end.
    """
    left: dict[tuple[int, int], int] = {}
    right: dict[tuple[int, int], int] = {}
    colours = [-1] * len(edges)
    for index, (a, b) in enumerate(edges):
        at_a = _free(left, a)
        at_b = _free(right, b)
        if (b, at_a) in right:
            _swap(edges, colours, left, right, b, at_a, at_b)
        colours[index] = at_a
        left[a, at_a] = index
        right[b, at_a] = index
    return colours


def _free(used: dict[tuple[int, int], int], node: int) -> int:
    """Return the least colour that no edge at `node` has."""
    candidate = 0
    while (node, candidate) in used:
        candidate += 1
    return candidate


def _swap(
    edges: Sequence[tuple[int, int]],
    colours: list[int],
    left: dict[tuple[int, int], int],
    right: dict[tuple[int, int], int],
    start: int,
    first: int,
    second: int,
) -> None:
    """Exchange colours `first` and `second` along the path from right node `start` whose first edge has `first`."""
    path = []
    node = start
    side = right
    wanted = first
    while (node, wanted) in side:
        index = side[node, wanted]
        path.append(index)
        a, b = edges[index]
        node, side = (a, left) if side is right else (b, right)
        wanted = second if wanted == first else first
    for index in path:
        a, b = edges[index]
        del left[a, colours[index]], right[b, colours[index]]
    for index in path:
        a, b = edges[index]
        colours[index] = second if colours[index] == first else first
        left[a, colours[index]] = index
        right[b, colours[index]] = index


def route(
    n_heads: int, width: int, moves: Sequence[Move], keep: Sequence[tuple[int, int]] = ()
) -> tuple[SplitStage, SplitStage, SplitStage]:
    """Return the three stages that carry out all `moves`; everything not named becomes zero.

    Claim: place (chunk, column) = (m.targets, m.to) receives the sum of chunks m.sources at m.column, for every move m.

    Dimension-wise in column m.column: the sum of the sources goes to chunk `middle`, the move's colour. Split-wise in
    chunk `middle`: column m.column goes to column m.to. Dimension-wise in column m.to: chunk `middle` goes to the
    targets. Two moves with one column have different colours, and so have two moves into one column, since the
    colouring is proper: in no stage do two of them meet. There are no more colours than chunks, because a column has as
    many places as there are chunks. QED.

    keep: pairs (source chunk, target chunk) that pass unchanged in every column and are added at their target; the
    source chunks must not be among the colours (they are the bias chunks, which lie above). Moves must be into distinct
    places and from distinct places.
    """

    @cache
    def colours() -> list[int]:
        return colour([(move.column, move.to) for move in moves])

    def gather() -> Tensor:
        weight = torch.zeros(width, n_heads, n_heads, dtype=torch.float64)
        for move, middle in zip(moves, colours(), strict=True):
            weight[move.column, middle, list(move.sources)] = 1
        for source, _ in keep:
            weight[:, source, source] = 1
        return weight

    def shift() -> Tensor:
        weight = torch.zeros(n_heads, width, width, dtype=torch.float64)
        for move, middle in zip(moves, colours(), strict=True):
            weight[middle, move.to, move.column] = 1
        for source, _ in keep:
            weight[source] = torch.eye(width, dtype=torch.float64)
        return weight

    def place() -> Tensor:
        weight = torch.zeros(width, n_heads, n_heads, dtype=torch.float64)
        for move, middle in zip(moves, colours(), strict=True):
            weight[move.to, list(move.targets), middle] = 1
        for source, target in keep:
            weight[:, target, source] = 1
        return weight

    dimension = (width, n_heads, n_heads)
    split = (n_heads, width, width)
    return (
        SplitStage("dimension", n_heads, width, TensorSpec(dimension, gather)),
        SplitStage("split", n_heads, width, TensorSpec(split, shift)),
        SplitStage("dimension", n_heads, width, TensorSpec(dimension, place)),
    )
