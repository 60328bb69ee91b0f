"""Functions of single numbers, with vectors of parameters: ``gain * clamp(fn(x + shift), low, high)``.

A region of a graph is evaluated at numbers, and compared with every function of `FUNCTIONS`, so that it does not
matter how it is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.elementwise import BINARY, TOLERANCE, UNARY, agrees
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.layouts import VectorLayout, vector_layout
from tintc.frontend.graph.node_queries import CASTS, COPIES, VIEWS, is_noise, peel, scalar, single_sources
from tintc.frontend.graph.regions import between, push
from tintc.ir.pointwise import FUNCTIONS

CROSSED = UNARY | BINARY | COPIES | CASTS | VIEWS | {"where", "transpose", "permute"}
POINTS = torch.cat((torch.linspace(-9, 9, 20, dtype=torch.float64), torch.tensor([-60.0, 25.0], dtype=torch.float64)))
FAR = 30.0
"""A number whose function differs from that of its negative."""


@dataclass(frozen=True)
class Function:
    """A function that was recognised: of those columns of the source; vectors, limits: by the names that
    `PointwiseOptions` has for them."""

    source: Node
    columns: list[int]
    fn: str
    vectors: dict[str, str]
    limits: dict[str, float]


def crosses(graph: CapturedGraph, node: Node) -> bool:
    """Return True if the node acts on single numbers, with numbers and parameters, or changes a shape."""
    return is_noise(graph, node) or opname(node) in CROSSED


def find_pointwise(graph: CapturedGraph, node: Node) -> Function | None:
    """Return the function of the farthest value whose columns stay where they are; else a product of columns of the
    nearest one with numbers; None if neither is known."""
    layout = vector_layout(graph, node)
    if layout is None:
        return None
    for source in reversed(single_sources(graph, node, partial(crosses, graph))):
        source = peel(graph, source)
        before = vector_layout(graph, source)
        if before is None or source is node:
            continue
        region = _Region(graph, node, source, layout, before)
        columns = region.columns()
        if columns is None:
            continue
        found = region.function(columns)
        if found is not None and (columns == list(range(before.width)) or found.fn == "identity"):
            return found
    return None


class _Region:
    """What lies between two nodes that hold a vector per token, as a function of vectors ``[n, W] -> [n, W']``."""

    def __init__(
        self, graph: CapturedGraph, root: Node, source: Node, layout: VectorLayout, before: VectorLayout
    ) -> None:
        self.graph = graph
        self.root = root
        self.source = source
        self.layout = layout
        self.before = before
        self.device = graph.input_ids.meta["val"].device

    def __call__(self, rows: Tensor) -> Tensor:
        shape = self.graph.shape(self.source, 1, len(rows))
        assert shape is not None
        placed = self.before.place(rows[None].to(self.device), shape)
        return self.layout.take(push(self.graph, self.root, {self.source: placed}, 1, len(rows)), 1, len(rows))[0].cpu()

    def columns(self) -> list[int] | None:
        """Return the column of the source of which each column of the result is a function; None if there is none.

        Token b has a large number in the columns whose index has bit b, and its negative in the others.
        """
        width = self.before.width
        bits = max(1, (width - 1).bit_length())
        place = 2 ** torch.arange(bits)[:, None]
        rows = torch.where((torch.arange(width)[None] & place) > 0, FAR, -FAR)
        ends = torch.tensor([[-FAR], [FAR]]).expand(2, width)
        values = self(torch.cat((rows, ends)).double())
        low, high = values[-2:]
        set_bits = values[:-2] == high
        if bool((low == high).any()) or not bool((set_bits | (values[:-2] == low)).all()):
            return None
        columns = (set_bits * place).sum(0)
        if bool((columns >= width).any()):
            return None
        return columns.tolist()

    def function(self, columns: list[int]) -> Function | None:
        """Return the function, with names of its vectors; None if it is not known."""
        x = POINTS[:, None]
        y = self(x.expand(-1, self.before.width))
        shifts = [torch.zeros(1, y.shape[1], dtype=torch.float64), *self._shifts()]
        for fn, act in FUNCTIONS.items():
            for shift in shifts:
                for low, high in self._limits():
                    plain = _clamped(act(x + shift), low, high)
                    gain = _gain(y, plain)
                    if gain is not None and self._holds(columns, fn, shift, low, high, gain):
                        return self._found(columns, fn, shift, low, high, gain)
        return None

    def _found(
        self, columns: list[int], fn: str, shift: Tensor, low: float | None, high: float | None, gain: Tensor
    ) -> Function:
        vectors: dict[str, str] = {}
        if bool((shift != 0).any()):
            vectors["shift"] = self.graph.derive_constant("shift", shift[0].clone())
        if bool((gain != 1).any()):
            vectors["gain"] = self.graph.derive_constant("gain", gain[0].clone())
        limits = {key: value for key, value in (("low", low), ("high", high)) if value is not None}
        return Function(self.source, columns, fn, vectors, limits)

    def _holds(
        self, columns: list[int], fn: str, shift: Tensor, low: float | None, high: float | None, gain: Tensor
    ) -> bool:
        """Return True if the function is that of the region for numbers that differ from column to column."""
        generator = torch.Generator().manual_seed(0)
        x = 4 * torch.randn(8, self.before.width, generator=generator, dtype=torch.float64)
        return agrees(self(x), gain * _clamped(FUNCTIONS[fn](x[:, columns] + shift), low, high))

    def _shifts(self) -> Iterator[Tensor]:
        """Yield the vectors ``[1, W']`` that the region adds to something."""
        for node in between(self.graph, self.root, (self.source,)):
            if opname(node) not in ("add", "sub") or len(self.graph.live_inputs(node)) != 1:
                continue
            layout = vector_layout(self.graph, node)
            constant = next((value for value in node.args[:2] if value not in self.graph.live), None)
            shape = self.graph.shape(node, 1, 1)
            if layout is None or layout.width != self.layout.width or shape is None:
                continue
            value = scalar(self.graph, constant)
            if value is None and isinstance(constant, Node):
                row = layout.take(self.graph.evaluate(constant, 1, 1).expand(shape), 1, 1)[0].cpu()
            else:
                row = torch.full((1, layout.width), value or 0.0, dtype=torch.float64)
            yield row
            yield -row

    def _limits(self) -> list[tuple[float | None, float | None]]:
        """Return the pairs of limits to try: none, and the numbers of the region."""
        numbers: dict[float, None] = {}
        for node in between(self.graph, self.root, (self.source,)):
            for value in (*node.args[1:], *node.kwargs.values()):
                number = scalar(self.graph, value) if isinstance(value, Node | int | float) else None
                if number is not None:
                    numbers[number] = None
        either: list[float | None] = [None, *numbers]
        pairs = [(low, high) for low in either for high in either]
        return [(low, high) for low, high in pairs if low is None or high is None or low < high]


def _clamped(x: Tensor, low: float | None, high: float | None) -> Tensor:
    if low is None and high is None:
        return x
    return x.clamp(low, high)


def _gain(y: Tensor, plain: Tensor) -> Tensor | None:
    """Return the vector ``[1, W']`` by which a function is to be multiplied to be y ``[n, W']``; None if there is
    none."""
    at = plain.abs().argmax(0, keepdim=True)
    size = plain.gather(0, at)
    if bool((size == 0).any()):
        return None
    gain = y.gather(0, at) / size
    rounded = gain.round()
    gain = torch.where((gain - rounded).abs() < TOLERANCE, rounded, gain)
    if bool((gain == 0).any()) or not agrees(y, gain * plain):
        return None
    return gain
