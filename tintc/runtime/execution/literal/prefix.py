"""The auxiliary's weights as prefix embeddings, and prefix embeddings as weights again."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tintc.ir.core import Type
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.fused_base import FusedWeights
from tintc.ir.simulator.interface.literal_base import ExpertTiles, PrefixTiles
from tintc.ir.simulator.shared.linear_common import (
    bias_dims,
    copies_of_bias,
    main_part,
    prefix_tile,
    stacked,
    unstacked,
)


class Prefix(nn.Module):
    """The auxiliary's weights as prefix embeddings.

    Holds ``weight [ceil(dout/S), S, din]`` and ``bias [dout]`` of a linear layer, both with the experts in front if
    there is one for each, or ``gain [D]`` and ``bias [D]`` of a norm, which stands for the linear layer diag(gain), or
    is kept as a vector if it descends. `forward` puts one tile into the prefix positions: row s of prefix k at chunk
    ``s*S'``, or a gain's vector at chunk 0 of prefix 0; the bias at chunk ``S*S'`` of prefix 0.
    """

    weight: Tensor
    gain: Tensor
    bias: Tensor

    def __init__(self, kind: Type, shapes: dict[str, tuple[int, ...]], tiles: tuple[int, int], layout: Layout):
        super().__init__()
        self.holds = kind
        self.tiles = tiles
        self.layout = layout
        self.parts = tuple(shapes)
        for part, shape in shapes.items():
            setattr(self, part, nn.Parameter(torch.empty(shape)))
        self.bias_copies = copies_of_bias(kind)

    def forward(self, e: Tensor, row: int, column: int, expert: int | None = None) -> Tensor:
        """Return ``e [B, K + T, D_sim]`` with tile (row, column), of one expert if there are any, in its prefix
        positions."""
        tile = self._tile(row, column, expert).to(e.dtype)
        return torch.cat((tile.expand(e.shape[0], -1, -1), e[:, self.layout.n_prefixes :]), 1)

    def rows(self, expert: int | None) -> Tensor:
        """Return ``[K', S, din]``: the stored rows, or the diagonal of a gain."""
        if expert is not None:
            return self.weight[expert]
        if self.holds.kind == "linear":
            return self.weight
        (width,) = self.holds.dims
        if "vector" in self.holds.parts:
            return F.pad(self.gain[None, None], (0, 0, 0, self.layout.stack - 1))
        diagonal = getattr(self, "gain", None)
        if diagonal is None:
            diagonal = torch.ones_like(self.bias)
        padded = F.pad(torch.diag(diagonal), (0, 0, 0, -width % self.layout.stack))
        return padded.unflatten(0, (-1, self.layout.stack))

    def _tile(self, r: int, c: int, expert: int | None) -> Tensor:
        bias = None
        if self.bias_copies:
            bias = self.bias
        if bias is not None and expert is not None:
            bias = bias[expert]
        return prefix_tile(self.layout, self.rows(expert), bias, self.bias_copies, r, c)


def given_prefixes(stored: Prefix, weights: FusedWeights, batch: int) -> PrefixTiles | ExpertTiles:
    """Return weights of each of `batch` examples, or of all of them, as prefix embeddings, in the place of stored ones.

    They have no pending updates. A gain that is held as a diagonal does not descend, and is what is stored.
    """
    kind = stored.holds
    parts = {"bias": weights.bias, main_part(kind): weights.weight}
    each: dict[str, Tensor] = {}
    for part, tensor in parts.items():
        if tensor is not None:
            dims = len(kind.dims)
            if part == "bias":
                dims = bias_dims(kind)
            if tensor.dim() == dims:
                tensor = tensor[None]
            each[part] = tensor.expand(batch, *tensor.shape[1:])
    if kind.kind != "experts":
        return _given_tiles(stored, each)
    experts = range(kind.dims[0])
    return ExpertTiles([_given_tiles(stored, {part: of[:, e] for part, of in each.items()}) for e in experts])


def _given_tiles(stored: Prefix, parts: dict[str, Tensor]) -> PrefixTiles:
    """Return the tiles ``[B, K, D_sim]`` of a linear layer's or norm's parts, each with the examples first."""
    layout = stored.layout
    kind = stored.holds
    rows, columns = stored.tiles
    tile = partial(stacked, layout, kind, parts)
    if kind.kind == "norm" and "vector" not in kind.parts:
        bias = parts["bias"]
        diagonal = stored.rows(None).expand(len(bias), -1, -1, -1)
        tile = partial(prefix_tile, layout, diagonal, bias, stored.bias_copies)
    return PrefixTiles([[tile(r, c) for c in range(columns)] for r in range(rows)])


def unpack_weights(
    weights: FusedWeights | PrefixTiles | ExpertTiles, kind: Type, layout: Layout, example: int = 0
) -> dict[str, Tensor]:
    """Return the parts of one example's weights that can descend, as plain tensors.

    They are ``weight [dout, din]`` of a linear layer, ``[E, dout, din]`` of one for each expert, ``gain [D]`` of a norm
    that holds it as a vector, ``bias`` of any. Fused weights have no pending updates.
    """
    if isinstance(weights, FusedWeights):
        parts = _from_fused(weights, kind, example)
    elif isinstance(weights, ExpertTiles):
        each = [_from_prefixes(tiles, kind, layout, example) for tiles in weights.each]
        parts = {part: torch.stack([expert[part] for expert in each]) for part in each[0]}
    else:
        parts = _from_prefixes(weights, kind, layout, example)
    if kind.kind == "norm" and "gain" not in parts:
        gain = parts.pop("weight", None)
        if gain is not None and "vector" in kind.parts:
            parts["gain"] = gain
    return parts


def _from_fused(weights: FusedWeights, kind: Type, example: int) -> dict[str, Tensor]:
    """Return the weight and bias of one example; those without a batch dimension are every example's."""
    dims = {"weight": len(kind.dims), "bias": bias_dims(kind)}
    parts: dict[str, Tensor] = {}
    for part, tensor in (("weight", weights.weight), ("bias", weights.bias)):
        if tensor is None:
            continue
        if tensor.dim() > dims[part]:
            tensor = tensor[example]
        parts[part] = tensor
    return parts


def _from_prefixes(weights: PrefixTiles, kind: Type, layout: Layout, example: int) -> dict[str, Tensor]:
    """Return prefix embeddings as a matrix and a bias, the inverse of `Prefix`."""
    tiles = [[tile[example : example + 1] for tile in row if isinstance(tile, Tensor)] for row in weights.rows]
    return {part: tensor[0] for part, tensor in unstacked(layout, kind, tiles).items()}
