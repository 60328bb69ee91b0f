"""Products that share an input taken as one, where their weights can lie in one piece.

On a GPU one launch for q, k and v, or for gate and up, beats three. The stored weights are then moved into one piece of
memory, layer by layer, at the first run; parameters become views of it, so that nothing is stored twice and what is
trained or loaded into them is what runs. On a CPU it is left: the weights are mapped from the file as they lie there,
and one large product takes as long as three (RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tintc.runtime.model.causal_lm import TintForCausalLM

DEVICES = ("cuda",)


def joined(model: TintForCausalLM, names: Sequence[str]) -> tuple[Tensor, Tensor | None] | None:
    """``weight [sum dout, din]`` and ``bias [sum dout]`` of linear layers that all have a bias, or none of them; None
    where they stay apart: on devices other than `DEVICES`, and if rows that only fill a prefix lie between them."""
    if model.device.type not in DEVICES:
        return None
    layers = [model.prefix(name) for name in names]
    if any(layer.weight.shape[:2].numel() != layer.holds.dims[0] for layer in layers):
        return None
    weight = one_piece([layer.weight for layer in layers]).flatten(0, 1)
    biased = "bias" in layers[0].parts
    return weight, one_piece([layer.bias for layer in layers]) if biased else None


def one_piece(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors one after the other along their first dimension, as a view of the memory they share from here on."""
    first, shape = tensors[0], (sum(tensor.shape[0] for tensor in tensors), *tensors[0].shape[1:])
    with torch.no_grad():
        if not _adjacent(tensors):
            piece, start = torch.cat([tensor.detach() for tensor in tensors]), 0
            for tensor in tensors:
                tensor.data = piece[start : start + tensor.shape[0]]
                start += tensor.shape[0]
        return first.detach().as_strided(shape, first.stride(), first.storage_offset())


def _adjacent(tensors: Sequence[Tensor]) -> bool:
    storage, offset = tensors[0].untyped_storage().data_ptr(), tensors[0].storage_offset()
    for tensor in tensors:
        placed = (tensor.untyped_storage().data_ptr(), tensor.storage_offset())
        if placed != (storage, offset) or not tensor.is_contiguous():
            return False
        offset += tensor.numel()
    return True
