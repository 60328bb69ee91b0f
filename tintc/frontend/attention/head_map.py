"""The map from vectors per token to an attention's heads: which column goes to which head, and how heads rotate.

`read_heads` pushes an identity basis through the region between the vectors and the operand, in fp64, at four
positions, and reads off the map: head h's coordinate i at position t is

    alpha * s_t * (x[c] * cos(t f) -+ x[partner] * sin(t f)),        c = columns[h, i]

Where the size s_t changes with the position (it is 1 at position 0), it is read at all positions of the longest text.
The reading is then checked on random vectors, so that nothing rests on its being clever. Coordinates of q and
k may be permuted alike: pairs that lie neither as halves nor as neighbours are brought to the beginning of the head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.attention.rotations import Pairs, Rotation, UnsupportedHeadMap, entries, read_pairs, refine
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.layouts import VectorLayout, vector_layout
from tintc.frontend.graph.regions import between, push
from tintc.ir.functions import rotate

POSITIONS = 4
CHUNK = 1 << 24
"""Numbers pushed through a region at once (128 MiB in fp64)."""
TOLERANCE = 1e-9
SHORT = (torch.float32, torch.complex64)
ROUNDED = 2e-7
"""How far a cosine is off, per position, that was computed in fp32 and stored in a table."""


@dataclass(frozen=True)
class Region:
    """The operations between an operand of attention and the vectors it is cut from.

    transposed: the operand is ``[B, H, d, T]``.

    Several sources count as one vector, side by side.
    """

    graph: CapturedGraph
    root: Node
    sources: tuple[Node, ...]
    transposed: bool = False

    @property
    def layouts(self) -> list[VectorLayout]:
        layouts = [vector_layout(self.graph, source) for source in self.sources]
        return [layout for layout in layouts if layout is not None]

    @property
    def width(self) -> int:
        return sum(layout.width for layout in self.layouts)

    def run(self, rows: Tensor) -> Tensor:
        """Return heads ``[B, H, T, d]`` from vectors ``[B, T, W]``."""
        batch, length, _ = rows.shape
        rows = rows.to(self.graph.input_ids.meta["val"].device)
        rows_by_source = rows.split([layout.width for layout in self.layouts], -1)
        values: dict[Node, Tensor] = {}
        for source, layout, own_rows in zip(self.sources, self.layouts, rows_by_source, strict=True):
            shape = self.graph.shape(source, batch, length)
            assert shape is not None
            values[source] = layout.place(own_rows, shape)
        result = push(self.graph, self.root, values, batch, length)
        if result.dim() == 3 and result.shape[0] % batch == 0:
            result = result.unflatten(0, (batch, -1))  # batch and heads in one dimension, as baddbmm wants them
        if result.dim() != 4:
            raise UnsupportedHeadMap("its operand is not laid out as [batch, heads, length, head]")
        if self.transposed:
            result = result.transpose(2, 3)
        layout = vector_layout(self.graph, self.root)
        if layout is not None and layout.length == 1 and len(layout.sizes) == 2:
            result = result.transpose(1, 2)  # heads that are normalised before they come in front
        if result.shape[0] != batch or result.shape[2] != length:
            raise UnsupportedHeadMap("its operand is not laid out as [batch, heads, length, head]")
        return result.cpu()

    def rounded(self) -> bool:
        """Return True if a table of fp32 numbers goes into it, as a precomputed rotary embedding is."""
        graph = self.graph
        seen = set(between(graph, self.root, self.sources))
        stack = [source for node in seen for source in node.all_input_nodes if source not in graph.live]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            name = graph.names.get(node)
            if name is not None and graph.tensors[name].dtype in SHORT and graph.tensors[name].dim() > 1:
                return True
            stack.extend(source for source in node.all_input_nodes if source not in graph.live)
        return False


@dataclass(frozen=True)
class Heads:
    """Heads as columns ``[heads, head_dim]`` of the source vector; every coordinate is multiplied by `factor`.

    order: the permutation of a head's coordinates that the columns contain, if it is not the operand's own order.
    scales ``[max_length]``: what the heads of every position are multiplied by; None: by nothing.
    """

    columns: Tensor
    factor: float
    rotation: Rotation | None
    order: Tensor | None = None
    scales: Tensor | None = None

    @property
    def count(self) -> int:
        return self.columns.shape[0]

    @property
    def head_dim(self) -> int:
        return self.columns.shape[1]

    def grouped(self, count: int) -> Heads:
        """Return the heads without the repetition of each head ``self.count // count`` times in a row."""
        return replace(self, columns=self.columns[:: self.count // count])


def distinct_heads(columns: Tensor) -> int:
    """Return the number of different heads if equal ones follow each other in groups of one size."""
    changes = (columns[1:] != columns[:-1]).any(1)
    count = int(changes.sum()) + 1
    if columns.shape[0] % count:
        raise UnsupportedHeadMap("its heads are repeated unevenly")
    group = columns.shape[0] // count
    if not torch.equal(columns, columns[::group].repeat_interleave(group, 0)):
        raise UnsupportedHeadMap("its heads are repeated unevenly")
    return count


def read_heads(region: Region) -> Heads:
    """Return the heads at the region's root as columns of its sources.

    Raises `UnsupportedHeadMap` with the reason if they are more than columns, scaled by one number and rotated.
    """
    limit = region.graph.max_length
    rounded = region.rounded()
    tolerance = TOLERANCE
    if rounded:
        tolerance = ROUNDED * max(limit, POSITIONS)
    maps = _maps(region)
    columns, factor = _columns(maps[0], tolerance)
    heads = Heads(columns, factor, None)
    if any(_differ(later, maps[0], tolerance * abs(factor)) for later in maps[1:]):
        pairs = read_pairs(maps[1], columns, factor, tolerance)
        if pairs is not None:
            heads = _rotated(region, heads, pairs, rounded)
    result, reading = _result_and_reading(region, heads, 1, limit)
    heads = replace(heads, scales=_scales(result, reading, tolerance))
    _check(heads, result, reading, tolerance)
    result, reading = _result_and_reading(region, heads, 2, min(5, limit))
    _check(heads, result, reading, tolerance)
    return heads


def _rotated(region: Region, heads: Heads, pairs: Pairs, rounded: bool) -> Heads:
    """Return the heads with their rotation."""
    if not pairs.style():
        pairs = pairs.completed(heads.head_dim)
    angles = pairs.angles
    if rounded:
        rows = _random(region, 1, region.graph.max_length)
        before = rows[0][:, heads.columns[0]] * heads.factor
        after = region.run(rows)[0, 0]
        coordinates = torch.stack((pairs.lower, pairs.upper), -1)
        angles = refine(angles, before[:, coordinates], after[:, coordinates])
    style = pairs.style()
    if style:
        return replace(heads, rotation=Rotation(angles, style))
    order = pairs.order(heads.head_dim)
    return replace(heads, columns=heads.columns[:, order], rotation=Rotation(angles, "half"), order=order)


def _differ(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool(((a - b).coalesce().values().abs() > tolerance).any())


def _maps(region: Region) -> list[Tensor]:
    """Return the matrix ``[H, d, W]`` of the region for each position t; sparse, for wide models."""
    width = region.width
    chunk = max(1, min(width, CHUNK // (POSITIONS * width)))
    chunks: list[Tensor] = []
    for start in range(0, width, chunk):
        basis = torch.zeros(chunk, width, dtype=torch.float64)
        used = min(chunk, width - start)
        basis[:used, start : start + used] = torch.eye(used, dtype=torch.float64)
        rows = basis[:, None].expand(chunk, POSITIONS, width).contiguous()
        chunks.append(region.run(rows)[:used].to_sparse())
    whole = torch.cat(chunks)
    return [whole.select(2, position).permute(1, 2, 0).coalesce() for position in range(POSITIONS)]


def _columns(first: Tensor, tolerance: float) -> tuple[Tensor, float]:
    """Return the column of every head coordinate, and the common factor, from the map ``[H, d, W]`` at position 0."""
    n_heads, head_dim, _ = first.shape
    index, values = entries(first, tolerance)
    places = index[0] * head_dim + index[1]
    if not torch.equal(places.sort().values, torch.arange(n_heads * head_dim)):
        raise UnsupportedHeadMap("its heads mix or drop coordinates of the vector they are cut from")
    factor = float(values[0])
    if (values - factor).abs().max() > tolerance * abs(factor):
        raise UnsupportedHeadMap("its heads scale their coordinates differently")
    columns = torch.empty(n_heads * head_dim, dtype=torch.long)
    columns[places] = index[2]
    return columns.view(n_heads, head_dim), factor


def _random(region: Region, batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, length, region.width, generator=generator, dtype=torch.float64)


def _result_and_reading(region: Region, heads: Heads, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Return the region applied to random vectors, and the reading, but for its scales: both ``[B, H, T, d]``."""
    rows = _random(region, batch, length)
    result = region.run(rows)
    if heads.order is not None:
        result = result[..., heads.order]
    reading = rows[..., heads.columns].transpose(1, 2) * heads.factor
    if heads.rotation is not None:
        positions = torch.arange(length).expand(batch, -1)
        reading = rotate(reading, positions, heads.rotation.frequencies, heads.rotation.style)
    return result, reading


def _scales(result: Tensor, reading: Tensor, tolerance: float) -> Tensor | None:
    """Return the factors ``[T]`` by which the heads ``[1, H, T, d]`` are longer than read; None if they are not."""
    if result.shape != reading.shape:
        return None
    scales = (result * reading).sum((0, 1, 3)) / reading.square().sum((0, 1, 3))
    if bool(((scales - 1).abs() <= tolerance).all()):
        return None
    return scales


def _check(heads: Heads, result: Tensor, reading: Tensor, tolerance: float) -> None:
    """Raise `UnsupportedHeadMap` if the reading of random vectors is not the region's result."""
    if heads.scales is not None:
        reading = reading * heads.scales[: reading.shape[2], None]
    if result.shape != reading.shape or (result - reading).abs().max() > tolerance * reading.abs().max():
        raise UnsupportedHeadMap("it changes with the position or the length in a way that is no rotary embedding")
