"""Shared by the three linear modules: heads, routes between rows and coordinates, and the tile loop.

Heads. Prefix k holds weight rows ``k*S .. k*S+S-1``; row s starts at chunk ``s*S'``. Head (s, j), of index
``s*S' + j``, sees chunk j of row s: "shard j of row kS+s". Bias heads ``S*S' .. S*S' + S' - 1`` see the bias, which
only prefix 0 holds. A value's coordinate r stands in chunk ``r // d_h``, column ``r % d_h`` of its slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from tintc.ir.block_specs import SplitStage
from tintc.ir.core import Op, Type, Value
from tintc.ir.layout import Layout
from tintc.ir.routing import Move
from tintc.ir.simulator.interface.elements import InPrefix
from tintc.ir.structure import chunk_map


def main_chunks(layout: Layout) -> range:
    """Return the indices of the main heads, which are those of the chunks that hold weight rows."""
    return range(layout.main_heads)


def bias_chunks(layout: Layout) -> range:
    """Return the indices of the bias heads, which are those of the chunks that hold the bias."""
    return range(layout.main_heads, layout.main_heads + layout.shards)


def select_chunks(layout: Layout, chunks: range, factor: float = 1.0) -> SplitStage:
    """Return the dimension-wise stage that keeps `chunks` (times `factor`) and clears the others."""
    return chunk_map(layout.n_heads, layout.d_h, {(chunk, chunk): factor for chunk in chunks})


@cache
def rows_to_heads(layout: Layout) -> list[Move]:
    """Return moves of dy's coordinate ``kS+s`` (slot 0) to column k of every head (s, j), j < S'."""
    moves = []
    for row in range(layout.pitch):
        k, s = divmod(row, layout.stack)
        chunk, column = divmod(row, layout.d_h)
        heads = tuple(s * layout.shards + j for j in range(layout.shards))
        moves.append(Move((chunk,), column, heads, k))
    return moves


@cache
def heads_to_rows(layout: Layout) -> list[Move]:
    """Return moves of column k of the heads (s, j), added over j, to y's coordinate ``kS+s`` (slot 0).

    They are those of `rows_to_heads`, reversed.
    """
    return [Move(move.targets, move.to, move.sources, move.column) for move in rows_to_heads(layout)]


def copies_of_bias(weights: Type) -> int:
    """Return the number of column tiles that hold the bias: 1, or m with ``bias/m`` each in the authors' layout; 0
    without bias."""
    for part in weights.parts:
        if part.startswith("bias"):
            return int(part.removeprefix("bias") or 1)
    return 0


def main_part(weights: Type) -> str:
    """Return the name of the part that is not a bias."""
    if weights.kind == "norm":
        return "gain"
    return "weight"


def bias_dims(weights: Type) -> int:
    """Return the number of dimensions of a bias: one more where there is one for each expert."""
    return 1 + (weights.kind == "experts")


def unstacked(layout: Layout, weights: Type, tiles: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """Return the parts of the weights that prefix embeddings ``[B, K, D_sim]``, by row and column tile, hold.

    A linear layer, or one expert's: ``weight [B, dout, din]`` and, if there is one, ``bias [B, dout]``; a norm: ``bias
    [B, D]`` and, where it is kept as a vector, ``gain [B, D]``. Copies of a bias are added.
    """
    dout, din = matrix_sides(weights)
    mains = layout.main_heads * layout.d_h
    end = mains + layout.pitch
    rows: list[Tensor] = []
    biases: list[Tensor] = []
    for row in tiles:
        stacked = [tile[..., :mains].unflatten(-1, (layout.stack, layout.pitch)).flatten(1, 2) for tile in row]
        rows.append(torch.cat(stacked, -1)[..., :din])
        bias = torch.stack([tile[:, 0, mains:end] for tile in row]).sum(0)
        biases.append(F.pad(bias, (0, layout.pitch - bias.shape[-1])))
    weight = torch.cat(rows, 1)
    parts: dict[str, Tensor] = {}
    if weights.kind != "norm":
        parts["weight"] = weight[:, :dout]
    elif "vector" in weights.parts:
        parts["gain"] = weight[:, 0]
    if copies_of_bias(weights):
        parts["bias"] = torch.cat(biases, -1)[:, :dout]
    return parts


def stacked(layout: Layout, weights: Type, parts: Mapping[str, Tensor], row: int, column: int) -> Tensor:
    """Return one tile of the prefix embeddings, ``[B, K, D_sim]``, that hold these parts: what `unstacked` takes
    apart. Every copy of a bias has an equal share."""
    if "weight" in parts:
        weight = parts["weight"]
        rows = F.pad(weight, (0, 0, 0, -weight.shape[1] % layout.stack)).unflatten(1, (-1, layout.stack))
    elif "gain" in parts:
        rows = F.pad(parts["gain"][:, None, None], (0, 0, 0, layout.stack - 1))
    else:
        rows = parts["bias"].new_zeros(len(parts["bias"]), 1, layout.stack, layout.pitch)
    return prefix_tile(layout, rows, parts.get("bias"), copies_of_bias(weights), row, column)


def prefix_tile(layout: Layout, rows: Tensor, bias: Tensor | None, copies: int, r: int, c: int) -> Tensor:
    """Return the prefix embeddings ``[..., K, D_sim]`` of one tile of ``rows [..., K', S, din]`` and ``bias [...,
    dout]``.

    Row s of prefix k stands at chunk ``s*S'``, the bias at chunk ``S*S'`` of prefix 0, in the first `copies` tiles of a
    row, in equal shares.
    """
    k = layout.n_prefixes
    pitch = layout.pitch
    tile = rows[..., r * k : (r + 1) * k, :, c * pitch : (c + 1) * pitch]
    tile = F.pad(tile, (0, pitch - tile.shape[-1], 0, 0, 0, k - tile.shape[-3]))
    main = tile.flatten(-2)
    width = layout.d_sim - main.shape[-1]
    if bias is None or c >= copies:
        return F.pad(main, (0, width))
    part = bias[..., None, r * pitch : (r + 1) * pitch] / copies
    return torch.cat((main, F.pad(part, (0, width - part.shape[-1], 0, k - 1))), -1)


def weight_in_prefix(layout: Layout, row: int, column: int) -> InPrefix:
    """Return where `prefix_tile` puts the number (row, column) of a weight."""
    tile_row, row = divmod(row, layout.pitch)
    tile_column, column = divmod(column, layout.pitch)
    prefix, stacked_row = divmod(row, layout.stack)
    return InPrefix((tile_row, tile_column), prefix, stacked_row * layout.pitch + column)


def bias_in_prefix(layout: Layout, weights: Type, row: int) -> tuple[InPrefix, ...]:
    """Return where `prefix_tile` puts number `row` of a bias: every copy of it."""
    tile_row, row = divmod(row, layout.pitch)
    number = layout.stack * layout.pitch + row
    return tuple(InPrefix((tile_row, column), 0, number) for column in range(copies_of_bias(weights)))


def weight_tiles(layout: Layout, weights: Value) -> tuple[int, int]:
    """Return (row tiles, column tiles) of a linear layer's weights, of one expert's, or of a norm's as a diagonal."""
    dout, din = matrix_sides(weights.type)
    return layout.tiles(dout), layout.tiles(din)


def count_tiles(layout: Layout, weights: Type) -> int:
    """Return the number of weight tiles, of all experts together."""
    dout, din = matrix_sides(weights)
    experts = 1
    if weights.kind == "experts":
        experts = weights.dims[0]
    return experts * layout.tiles(dout) * layout.tiles(din)


def matrix_sides(weights: Type) -> tuple[int, int]:
    """Return dout and din of a linear layer, of one expert's, or of a norm's gain as a diagonal."""
    if weights.kind == "norm":
        return weights.width, weights.width
    dout, din = weights.dims[-2:]
    return dout, din


def forward_scores(layout: Layout, weight: Tensor, x: Tensor) -> Iterator[Tensor]:
    """Yield the scores of the forward module, one shard after the other: of each shard of a row with that shard of x.

    ``weight [dout, din]`` or ``[B, dout, din]``, ``x [B, T, din]``. Shards are d_h wide and go on from tile to tile.
    """
    shards = zip(x.split(layout.d_h, -1), weight.split(layout.d_h, -1), strict=True)
    return (part @ row.transpose(-1, -2) for part, row in shards)


def check_linear(op: Op, weight: Value, dout: Value | None, din: Value | None) -> None:
    """Raise `IRError` unless `weight` is a linear layer's, and of the widths of its output and input, where these are
    given."""
    kind = weight.type
    op.expect(kind.kind == "linear" and len(kind.dims) == 2, f"needs linear weights, not {kind}")
    if dout is not None:
        op.expect(dout.type.width == kind.dims[0], f"weights are {kind}, the output side is {dout.type}")
    if din is not None:
        op.expect(din.type.width == kind.dims[1], f"weights are {kind}, the input side is {din.type}")
