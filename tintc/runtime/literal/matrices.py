"""Weights that a run has made, as the matrices and vectors of one example."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tintc.ir.core import Type
from tintc.ir.layout import Layout
from tintc.ir.simulator.base import PrefixTiles
from tintc.ir.simulator.fused_base import FusedWeights


def matrices(made: FusedWeights | PrefixTiles, kind: Type, layout: Layout, example: int = 0) -> dict[str, Tensor]:
    """The parts that can descend: ``weight [dout, din]`` of a linear layer, ``gain [D]`` of a norm that holds it as a
    vector, ``bias`` of either. Fused weights have no pending updates."""
    if isinstance(made, FusedWeights):
        parts = {"weight": made.weight, "bias": made.bias}
        found = {part: tensor for part, tensor in parts.items() if tensor is not None}
        found = {part: t[example] if t.dim() > _dims(kind, part) else t for part, t in found.items()}
    else:
        found = _from_prefixes(made, kind, layout, example)
    if kind.kind == "norm":
        gain = found.pop("weight", None)
        found |= {"gain": gain} if gain is not None and "vector" in kind.parts else {}
    return found


def _dims(kind: Type, part: str) -> int:
    return 2 if part == "weight" and kind.kind == "linear" else 1


def _from_prefixes(made: PrefixTiles, kind: Type, layout: Layout, example: int) -> dict[str, Tensor]:
    """Prefix embeddings as a matrix and a bias: what `tintc.runtime.literal.blocks.Prefix` does, undone."""
    dout, din = kind.dims if kind.kind == "linear" else (kind.dims[0], kind.dims[0])
    mains, end = layout.main_heads * layout.d_h, layout.main_heads * layout.d_h + layout.pitch
    rows, biases = [], []
    for row in made.rows:
        tiles = [tile[example] for tile in row if isinstance(tile, Tensor)]
        rows.append(torch.cat([tile[:, :mains].reshape(-1, layout.pitch) for tile in tiles], 1)[:, :din])
        missing = max(0, end - tiles[0].shape[1])
        biases.append(F.pad(torch.stack([tile[0, mains:end] for tile in tiles]).sum(0), (0, missing)))
    weight = torch.cat(rows)
    found = {"weight": weight[0] if "vector" in kind.parts else weight[:dout]}
    return found | ({"bias": torch.cat(biases)[:dout]} if any(p.startswith("bias") for p in kind.parts) else {})
