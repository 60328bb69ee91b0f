"""`part_of`: some rows and columns of a tensor that grows with the square of the length, without the rest of it.

Masks are made of vectors of positions, by operations that work entry by entry. What is asked of such a tensor is
therefore asked of the operation's inputs, up to those that grow with the length alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import execute, opname
from tintc.frontend.graph.node_queries import CASTS, COPIES, PROBES, VIEWS

ELEMENTWISE = COPIES | CASTS | {"__and__", "__or__", "__xor__", "where", "masked_fill"}
"""Operations that work entry by entry and that PyTorch does not tag so."""
EXPANDS = frozenset({"expand", "expand_as", "broadcast_to"})
TRIANGLES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"tril": torch.le, "triu": torch.ge}
"""How what is kept compares with the diagonal."""
Places = Mapping[int, Tensor]
"""For a dimension, counted from the last (-1), the indices that are wanted; all of a dimension that is not there."""


def part_of(graph: CapturedGraph, node: Node, length: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Of a node that is not live and ends in ``[T or 1, T or 1]``, the value at `rows` and `columns`, as
    ``[..., R or 1, C or 1]``, for one text of that length.

    It takes memory for what is asked for and for tensors with one dimension of T. A tensor with two that some other
    operation makes than those that masks are made of is computed whole.
    """
    counted = _dims_of_length(graph, node)
    places = {dim: indices for dim, indices in ((-2, rows), (-1, columns)) if dim in counted}
    return _Parts(graph, length).of(node, places)


def _dims_of_length(graph: CapturedGraph, node: Node) -> frozenset[int]:
    """The dimensions that count tokens, counted from the last (-1)."""
    shapes = [graph.shape(node, 1, length) or () for _, length in PROBES]
    lengths = tuple(length for _, length in PROBES)
    sizes = list(zip(*shapes, strict=True))
    return frozenset(at - len(sizes) for at, pair in enumerate(sizes) if pair == lengths)


class _Parts:
    """Parts of nodes at one length, each computed once."""

    def __init__(self, graph: CapturedGraph, length: int):
        self._graph = graph
        self._length = length
        self._whole = graph.evaluator(1, length)
        self._known: dict[tuple[Node, tuple[tuple[int, int], ...]], tuple[Places, Tensor]] = {}

    def of(self, node: Node, places: Places) -> Any:
        if not places or len(_dims_of_length(self._graph, node)) < 2:
            return _select(self._whole(node), places)
        key = (node, tuple(sorted((dim, id(indices)) for dim, indices in places.items())))
        if key not in self._known:
            self._known[key] = places, self._compute(node, places)  # the places live as long as their ids count
        return self._known[key][1]

    def _compute(self, node: Node, places: Places) -> Tensor:
        name, source = opname(node), node.args[0] if node.args else None
        if name in ELEMENTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ()):
            return execute(node, lambda at: self._aligned(at, places), torch.float64)
        if isinstance(source, Node) and name in EXPANDS:
            return self._aligned(source, places).expand(self._shape(node, places))
        if isinstance(source, Node) and name in VIEWS:
            moved = self._through_view(node, source, places)
            if moved is not None:
                return self.of(source, moved).reshape(self._shape(node, places))
        if isinstance(source, Node) and name == "slice":
            moved = self._through_slice(node, source, places)
            if moved is not None:
                return self.of(source, moved)
        if isinstance(source, Node) and name in TRIANGLES:
            return self._triangle(node, source, places)
        return _select(self._whole(node), places)

    def _size(self, node: Node) -> tuple[int, ...]:
        shape = self._graph.shape(node, 1, self._length)
        assert shape is not None
        return shape

    def _shape(self, node: Node, places: Places) -> list[int]:
        shape = list(self._size(node))
        for dim, indices in places.items():
            shape[dim] = len(indices)
        return shape

    def _aligned(self, node: Node, places: Places) -> Any:
        """An input that is broadcast: it has the places of those dimensions along which it is not repeated."""
        if not isinstance(node.meta.get("val"), Tensor):
            return self._whole(node)
        shape = self._size(node)
        return self.of(node, {dim: at for dim, at in places.items() if -dim <= len(shape) and shape[dim] != 1})

    def _through_view(self, node: Node, source: Node, places: Places) -> Places | None:
        """Where dimensions of size 1 come and go alone, the places in the source."""
        kept, before = self._long(node), self._long(source)
        if [self._size(node)[dim] for dim in kept] != [self._size(source)[dim] for dim in before]:
            return None
        moved = dict(zip(kept, before, strict=True))
        return {moved[dim]: indices for dim, indices in places.items()}

    def _long(self, node: Node) -> list[int]:
        shape = self._size(node)
        return [dim for dim in range(-len(shape), 0) if shape[dim] != 1]

    def _through_slice(self, node: Node, source: Node, places: Places) -> Places | None:
        """The places in what is sliced; None for slices that do not begin at the beginning and go by ones."""
        dims = len(self._size(source))
        dim, start = (node.args[1] if len(node.args) > 1 else 0), (node.args[2] if len(node.args) > 2 else 0)
        assert isinstance(dim, int)
        at = dim % dims - dims
        if start not in (0, None) or len(node.args) > 4:
            return None
        size = self._size(node)[at]
        if at in places or size == self._size(source)[at]:
            return places
        return {**places, at: torch.arange(size)}

    def _triangle(self, node: Node, source: Node, places: Places) -> Tensor:
        device = self._graph.input_ids.meta["val"].device
        shape, diagonal = self._size(node), node.args[1] if len(node.args) > 1 else 0
        rows, columns = (places.get(dim, torch.arange(shape[dim], device=device)) for dim in (-2, -1))
        value = self.of(source, places)
        keep = TRIANGLES[opname(node)](columns[None, :] - rows[:, None], torch.as_tensor(diagonal, device=device))
        return torch.where(keep, value, torch.zeros_like(value))


def _select(value: Any, places: Places) -> Any:
    for dim, indices in places.items():
        value = value.index_select(dim, indices.to(value.device))
    return value
