"""Weights that a run has made, as the unpack_weights and vectors of one example."""

from __future__ import annotations

from torch import Tensor

from tintc.ir.core import Type
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.fused_base import FusedWeights
from tintc.ir.simulator.interface.literal_base import PrefixTiles
from tintc.ir.simulator.shared.linear_common import unstacked


def unpack_weights(made: FusedWeights | PrefixTiles, kind: Type, layout: Layout, example: int = 0) -> dict[str, Tensor]:
    """The parts that can descend: ``weight [dout, din]`` of a linear layer, ``gain [D]`` of a norm that holds it as a
    vector, ``bias`` of either. Fused weights have no pending updates."""
    if isinstance(made, FusedWeights):
        parts = {"weight": made.weight, "bias": made.bias}
        found = {part: tensor for part, tensor in parts.items() if tensor is not None}
        found = {part: t[example] if t.dim() > _dims(kind, part) else t for part, t in found.items()}
    else:
        found = _from_prefixes(made, kind, layout, example)
    if kind.kind == "norm" and "gain" not in found:
        gain = found.pop("weight", None)
        found |= {"gain": gain} if gain is not None and "vector" in kind.parts else {}
    return found


def _dims(kind: Type, part: str) -> int:
    return 2 if part == "weight" and kind.kind == "linear" else 1


def _from_prefixes(made: PrefixTiles, kind: Type, layout: Layout, example: int) -> dict[str, Tensor]:
    """Prefix embeddings as a matrix and a bias: what `tintc.runtime.execution.literal.blocks.Prefix` does, undone."""
    tiles = [[tile[example : example + 1] for tile in row if isinstance(tile, Tensor)] for row in made.rows]
    return {part: tensor[0] for part, tensor in unstacked(layout, kind, tiles).items()}
