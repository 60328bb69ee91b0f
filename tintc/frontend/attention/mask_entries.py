"""`entries_at`: some rows and columns of a tensor that grows with the square of the length, without the rest of it.

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
from tintc.frontend.graph.node_queries import CASTS, COPIES, PROBES, VIEWS, argument

ELEMENTWISE = COPIES | CASTS | {"__and__", "__or__", "__xor__", "where", "masked_fill"}
"""Operations that work entry by entry and that PyTorch does not tag so."""
EXPANDS = frozenset({"expand", "expand_as", "broadcast_to"})
TRIANGLES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"tril": torch.le, "triu": torch.ge}
"""Comparison with the diagonal, which the entries that are kept satisfy."""
Places = Mapping[int, Tensor]
"""For a dimension, counted from the last (-1), the indices that are wanted; all of a dimension that is not there."""


def entries_at(graph: CapturedGraph, node: Node, length: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Return some entries of a node that is not live and ends in ``[T or 1, T or 1]``, for one text of that length.

    The result is ``[..., R or 1, C or 1]``, the value at `rows` and `columns`.
    It takes memory for what is asked for and for tensors with one dimension of T. A tensor with two that some other
    operation makes than those that masks are made of is computed whole.
    """
    lengths = _dims_of_length(graph, node)
    places = {dim: indices for dim, indices in ((-2, rows), (-1, columns)) if dim in lengths}
    return _Entries(graph, length).of(node, places)


def _dims_of_length(graph: CapturedGraph, node: Node) -> frozenset[int]:
    """Return the dimensions that count tokens, counted from the last (-1)."""
    shapes = [graph.shape(node, 1, length) or () for _, length in PROBES]
    lengths = tuple(length for _, length in PROBES)
    sizes = list(zip(*shapes, strict=True))
    return frozenset(dim - len(sizes) for dim, pair in enumerate(sizes) if pair == lengths)


class _Entries:
    """Entries of nodes at one length, each computed once."""

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
        name = opname(node)
        if name in ELEMENTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ()):
            return execute(node, lambda source: self._aligned(source, places), torch.float64)
        source = argument(node, 0, None)
        if not isinstance(source, Node):
            return _select(self._whole(node), places)
        if name in EXPANDS:
            return self._aligned(source, places).expand(self._shape(node, places))
        if name in VIEWS:
            moved = self._through_view(node, source, places)
            if moved is not None:
                return self.of(source, moved).reshape(self._shape(node, places))
        if name == "slice":
            moved = self._through_slice(node, source, places)
            if moved is not None:
                return self.of(source, moved)
        if name in TRIANGLES:
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
        """Return an input that is broadcast, at the places of those dimensions along which it is not repeated."""
        if not isinstance(node.meta.get("val"), Tensor):
            return self._whole(node)
        shape = self._size(node)
        own = {dim: indices for dim, indices in places.items() if -dim <= len(shape) and shape[dim] != 1}
        return self.of(node, own)

    def _through_view(self, node: Node, source: Node, places: Places) -> Places | None:
        """Return the places in the source, where dimensions of size 1 come and go alone; else None."""
        kept = self._long(node)
        before = self._long(source)
        if [self._size(node)[dim] for dim in kept] != [self._size(source)[dim] for dim in before]:
            return None
        moved = dict(zip(kept, before, strict=True))
        return {moved[dim]: indices for dim, indices in places.items()}

    def _long(self, node: Node) -> list[int]:
        shape = self._size(node)
        return [dim for dim in range(-len(shape), 0) if shape[dim] != 1]

    def _through_slice(self, node: Node, source: Node, places: Places) -> Places | None:
        """Return the places in the tensor that is sliced; None for slices with a start or a step."""
        dims = len(self._size(source))
        dim = argument(node, 1, 0) % dims - dims
        if argument(node, 2, None) not in (0, None) or len(node.args) > 4:
            return None
        size = self._size(node)[dim]
        if dim in places or size == self._size(source)[dim]:
            return places
        return {**places, dim: torch.arange(size)}

    def _triangle(self, node: Node, source: Node, places: Places) -> Tensor:
        device = self._graph.input_ids.meta["val"].device
        shape = self._size(node)
        diagonal = torch.as_tensor(argument(node, 1, 0), device=device)
        rows, columns = (places.get(dim, torch.arange(shape[dim], device=device)) for dim in (-2, -1))
        value = self.of(source, places)
        keep = TRIANGLES[opname(node)](columns[None, :] - rows[:, None], diagonal)
        return torch.where(keep, value, torch.zeros_like(value))


def _select(value: Any, places: Places) -> Any:
    for dim, indices in places.items():
        value = value.index_select(dim, indices.to(value.device))
    return value
