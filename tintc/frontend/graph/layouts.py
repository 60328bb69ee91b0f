"""Where a node keeps one vector per token, whatever shape it has: ``[B, T, W]``, ``[B, T, H, d]``, ``[B, H, T, d]``,
``[B, W, T]``, ``[H, B, d, T]``, ``[B * T * H, d]``.

The program knows vectors of W = H * d numbers alone; heads are equal parts of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.node_queries import PROBES, rows_width, scalar


@dataclass(frozen=True)
class VectorLayout:
    """The meaning of a node's dimensions. batch, length: those that count examples and tokens; sizes: of the others, in
    order.

    A node of shape ``[B * T, W]`` has both counts in dimension 0, and one of shape ``[B * T * H, d]`` the heads too.
    """

    batch: int
    length: int
    sizes: tuple[int, ...]

    @property
    def width(self) -> int:
        return math.prod(self.sizes)

    @property
    def is_rows(self) -> bool:
        """Return True if the last dimension is the vector."""
        return len(self.sizes) == 1 and self.length < 2

    @property
    def ends_in_tokens(self) -> bool:
        """Return True if the last dimension counts tokens, as in ``[B, W, T]``."""
        return self.batch == 0 and self.length == len(self.sizes) + 1

    @property
    def groups(self) -> int:
        """Return the number of parts that the last dimension cuts the vector into."""
        return math.prod(self.sizes[:-1])

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return True if a parameter of this shape, multiplied to the node, has one number for each coordinate or one
        that all groups share."""
        if self.ends_in_tokens:
            return shape == (*self.sizes, 1)
        return shape == self.sizes[-1:] or (shape == self.sizes and self.length < 2)

    def place(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return vectors ``[B, T, W]`` in the node's shape."""
        if self.batch == self.length or (len(shape) == 3 and self.length == 1):
            return rows.reshape(shape)
        value = rows.unflatten(-1, self.sizes)
        order = list(range(2, value.dim()))
        order.insert(self.batch, 0)
        order.insert(self.length, 1)
        return value.permute(order)

    def take(self, value: Tensor, batch: int, length: int) -> Tensor:
        """Return vectors ``[B, T, W]`` from a value in the node's shape: `place` undone."""
        if self.batch == self.length:
            return value.reshape(batch, length, -1)
        return value.movedim((self.batch, self.length), (0, 1)).flatten(2)


def vector_layout(graph: CapturedGraph, node: Node) -> VectorLayout | None:
    """Return the node's layout; None if it does not hold one vector of floats per token."""
    if rows_width(graph, node) is not None:
        dims = len(node.meta["val"].shape)
        return VectorLayout(0, dims - 2, (node.meta["val"].shape[-1],))
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() not in (2, 3, 4, 5):
        return None
    shapes = [graph.shape(node, *probe) for probe in PROBES]
    first, second = (shape or () for shape in shapes)
    if len(first) == 2:
        return _merged(first, second)
    pairs = list(zip(first, second, strict=True))
    batches, lengths = zip(*PROBES, strict=True)
    if pairs.count(lengths) != 1 or batches not in pairs:
        return None
    length = pairs.index(lengths)
    batch = pairs.index(batches)
    others = [pair for dim, pair in enumerate(pairs) if dim not in (batch, length)]
    if batch > length or not all(a == b for a, b in others):
        return None
    return VectorLayout(batch, length, tuple(size for size, _ in others))


def _merged(first: tuple[int, ...], second: tuple[int, ...]) -> VectorLayout | None:
    """Return the layout of ``[B * T * H, d]``, from the shapes at both sizes of `PROBES`."""
    tokens = [math.prod(probe) for probe in PROBES]
    heads = first[0] // tokens[0]
    rows = [count * heads for count in tokens]
    if first[1] != second[1] or heads < 2 or [first[0], second[0]] != rows:
        return None
    return VectorLayout(0, 0, (heads, first[1]))


def vector_with_constant(graph: CapturedGraph, node: Node) -> tuple[Node, Node] | None:
    """Return x and c if the node is ``x + c``, ``x * c`` or the same turned round.

    x has one vector per token, laid out as the node's; c is made of parameters, does not depend on the tokens, and is
    more than one number.
    """
    layout = vector_layout(graph, node)
    if opname(node) not in ("add", "mul") or node.kwargs or layout is None or node not in graph.live:
        return None
    x, constant = node.args[:2]
    if x not in graph.live:
        x, constant = constant, x
    if not isinstance(x, Node) or not isinstance(constant, Node) or constant not in graph.weighted:
        return None
    if vector_layout(graph, x) != layout or scalar(graph, constant) is not None:
        return None
    return x, constant
