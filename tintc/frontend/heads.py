"""How an attention operand is cut from a vector per token: which column goes to which head, and how heads rotate.

`classify` pushes an identity basis through the region between the vectors and the operand, in fp64, at four positions,
and reads off the map: head h's coordinate i at position t is

    alpha * (x[c] * cos(t f) -+ x[partner] * sin(t f)),        c = columns[h, i]

What it finds is then checked on random vectors, so that nothing rests on the reading being clever.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.graph import CapturedGraph
from tintc.frontend.patterns import rows_width
from tintc.frontend.regions import push
from tintc.ir.functions import rotate

POSITIONS = 4
CHUNK = 1 << 24
"""Numbers pushed through a region at once (128 MiB in fp64)."""
TOLERANCE = 1e-9


class NotHeads(Exception):
    """The operand is not cut from its source as heads are; the message is the reason, a sentence without full stop."""


@dataclass(frozen=True)
class Rotation:
    """Rotary embedding: frequencies ``[n]`` of the first 2n coordinates of every head; style half or interleaved."""

    frequencies: Tensor
    style: str


@dataclass(frozen=True)
class Heads:
    """columns ``[heads, head_dim]`` of the source vector; every coordinate is multiplied by `factor`."""

    columns: Tensor
    factor: float
    rotation: Rotation | None

    @property
    def count(self) -> int:
        return self.columns.shape[0]

    @property
    def head_dim(self) -> int:
        return self.columns.shape[1]

    def grouped(self, count: int) -> Heads:
        """Without the repetition of each head ``self.count // count`` times in a row."""
        return Heads(self.columns[:: self.count // count], self.factor, self.rotation)


def distinct_heads(columns: Tensor) -> int:
    """Number of different heads if equal ones follow each other in groups of one size."""
    changes = (columns[1:] != columns[:-1]).any(1)
    count = int(changes.sum()) + 1
    if columns.shape[0] % count:
        raise NotHeads("its heads are repeated unevenly")
    group = columns.shape[0] // count
    if not torch.equal(columns, columns[::group].repeat_interleave(group, 0)):
        raise NotHeads("its heads are repeated unevenly")
    return count


def classify(graph: CapturedGraph, root: Node, source: Node, transposed: bool) -> Heads:
    """The heads ``[B, H, T, d]`` at `root` (``[B, H, d, T]`` if transposed) as columns of the vectors at `source`.

    Raises `NotHeads` with the reason if they are anything else than columns, scaled by one number and rotated.
    """
    maps = _maps(graph, root, source, transposed)
    columns, factor = _columns(maps[0])
    moved = any(_differ(later, maps[0], TOLERANCE * abs(factor)) for later in maps[1:])
    heads = Heads(columns, factor, _rotation(maps, columns, factor) if moved else None)
    for batch, length in ((2, 5), (1, graph.max_length)):
        _check(graph, root, source, transposed, heads, batch, length)
    return heads


def _differ(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool(((a - b).coalesce().values().abs() > tolerance).any())


def _maps(graph: CapturedGraph, root: Node, source: Node, transposed: bool) -> list[Tensor]:
    """Per position t the sparse matrix ``[H, d, W]`` of the region; sparse, for wide models."""
    width = rows_width(graph, source)
    assert width is not None
    chunk = max(1, min(width, CHUNK // (POSITIONS * width)))
    parts: list[Tensor] = []
    for start in range(0, width, chunk):
        basis = torch.zeros(chunk, width, dtype=torch.float64)
        used = min(chunk, width - start)
        basis[:used, start : start + used] = torch.eye(used, dtype=torch.float64)
        rows = basis[:, None].expand(chunk, POSITIONS, width).contiguous()
        parts.append(_run(graph, root, source, transposed, rows)[:used].to_sparse())
    whole = torch.cat(parts)
    return [_at(whole, position) for position in range(POSITIONS)]


def _at(whole: Tensor, position: int) -> Tensor:
    """``[W, H, T, d]`` at one position, as ``[H, d, W]``."""
    return whole.select(2, position).permute(1, 2, 0).coalesce()


def _run(graph: CapturedGraph, root: Node, source: Node, transposed: bool, rows: Tensor) -> Tensor:
    """Heads ``[B, H, T, d]`` from vectors ``[B, T, W]``."""
    batch, length, _ = rows.shape
    shape = graph.shape(source, batch, length)
    assert shape is not None
    rows = rows.to(graph.input_ids.meta["val"].device)
    result = push(graph, root, source, rows.reshape(shape), batch, length)
    if result.dim() != 4:
        raise NotHeads("its operand is not laid out as [batch, heads, length, head]")
    result = result.transpose(2, 3) if transposed else result
    if result.shape[0] != batch or result.shape[2] != length:
        raise NotHeads("its operand is not laid out as [batch, heads, length, head]")
    return result.cpu()


def _columns(first: Tensor) -> tuple[Tensor, float]:
    """Column of every head coordinate, and the common factor, from the map at position 0."""
    n_heads, head_dim, _ = first.shape
    index, values = _entries(first)
    places = index[0] * head_dim + index[1]
    if not torch.equal(places.sort().values, torch.arange(n_heads * head_dim)):
        raise NotHeads("its heads mix or drop coordinates of the vector they are cut from")
    factor = float(values[0])
    if (values - factor).abs().max() > TOLERANCE * abs(factor):
        raise NotHeads("its heads scale their coordinates differently")
    columns = torch.empty(n_heads * head_dim, dtype=torch.long)
    columns[places] = index[2]
    return columns.view(n_heads, head_dim), factor


def _entries(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and values of the entries that are not rounding noise."""
    index, values = matrix.indices(), matrix.values()
    kept = values.abs() > TOLERANCE * values.abs().max() if values.numel() else values.bool()
    return index[:, kept], values[kept]


def _rotation(maps: list[Tensor], columns: Tensor, factor: float) -> Rotation:
    """Pairs and frequencies from the map at position 1; positions being whole numbers, f is wanted only modulo 2 pi."""
    n_heads, head_dim = columns.shape
    cos, sin, partner = _turns(maps[1], columns, factor)
    if not (torch.allclose(cos, cos[:1], atol=TOLERANCE) and torch.equal(partner, partner[:1].expand(n_heads, -1))):
        raise NotHeads("its heads rotate differently")
    turned = (partner[0] >= 0).nonzero().flatten()
    if not turned.numel():
        raise NotHeads("its heads change with the position, and not by a rotary embedding")
    first = turned[partner[0][turned] > turned]
    offsets = set((partner[0][first] - first).tolist())
    if offsets == {1} and head_dim > 2 and bool((first % 2 == 0).all()):
        style, n = "interleaved", int(turned.max() + 1) // 2
        lower, upper = torch.arange(n) * 2, torch.arange(n) * 2 + 1
    elif len(offsets) == 1:
        style, n = "half", offsets.pop()
        lower, upper = torch.arange(n), torch.arange(n) + n
    else:
        raise NotHeads("its coordinates rotate in pairs that are neither halves nor neighbours")
    if int(turned.max()) >= 2 * n or 2 * n > head_dim:
        raise NotHeads("its coordinates rotate in pairs that are neither halves nor neighbours")
    return Rotation(torch.atan2(sin[0][upper], cos[0][lower]), style)


def _turns(second: Tensor, columns: Tensor, factor: float) -> tuple[Tensor, Tensor, Tensor]:
    """cos, sin and the partner's coordinate (-1: none) of every head coordinate ``[H, d]``, at position 1."""
    n_heads, head_dim = columns.shape
    cos, sin = torch.zeros(2, n_heads, head_dim, dtype=torch.float64)
    partner = torch.full((n_heads, head_dim), -1, dtype=torch.long)
    place = [{int(column): i for i, column in enumerate(row)} for row in columns]
    index, values = _entries(second)
    for (h, i, column), value in zip(index.T.tolist(), (values / factor).tolist(), strict=True):
        j = place[h].get(column)
        if j is None:
            raise NotHeads("its heads mix with each other as the position changes")
        if j == i:
            cos[h, i] = value
        elif partner[h, i] >= 0:
            raise NotHeads("more than two of its coordinates mix as the position changes")
        else:
            partner[h, i], sin[h, i] = j, value
    return cos, sin, partner


def _check(
    graph: CapturedGraph, root: Node, source: Node, transposed: bool, heads: Heads, batch: int, length: int
) -> None:
    """The reading, applied to random vectors, equals the region applied to them."""
    width = rows_width(graph, source)
    assert width is not None
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(batch, length, width, generator=generator, dtype=torch.float64)
    found = _run(graph, root, source, transposed, rows)
    expected = rows[..., heads.columns].transpose(1, 2) * heads.factor
    if heads.rotation is not None:
        positions = torch.arange(length).expand(batch, -1)
        expected = rotate(expected, positions, heads.rotation.frequencies, heads.rotation.style)
    if found.shape != expected.shape or (found - expected).abs().max() > TOLERANCE * expected.abs().max():
        raise NotHeads("it changes with the position or the length in a way that is no rotary embedding")
