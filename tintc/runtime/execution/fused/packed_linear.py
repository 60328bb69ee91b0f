"""Products that share an input taken as one, where their weights lie in one piece.

On a GPU one launch for q, k and v, or for gate and up, beats three. There the stored weights are moved into one piece
of memory, layer by layer; parameters become views of it, so that nothing is stored twice and what is trained or loaded
into them is what runs. On a CPU it is left: the weights are mapped from the file as they lie there, and one large
product takes as long as three (RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tintc.ir.core import Program, Value
from tintc.ir.simulator import SimOp
from tintc.runtime.execution.literal.prefix import Prefix
from tintc.runtime.execution.simulator import Simulator

DEVICES = ("cuda",)


def shared_inputs(program: Program) -> list[tuple[str, ...]]:
    """Return the names of linear layers whose products share an input, all with a bias or all without; no name twice.

    A group holds what any run of the program may take as one, so that its weights need to be moved only once.
    """
    layers: dict[Value, str] = {}
    groups: dict[tuple[Value, bool], dict[str, None]] = {}
    for op in program.ops:
        if not isinstance(op, SimOp):
            continue
        origin = op.identity_operand()
        name = op.stored_weight()
        if name is None and origin is not None:
            name = layers.get(origin)
        if name is not None:
            layers[op.results[0]] = name
        if op.SHARES_INPUT and op.operands[0] in layers:
            weights, x = op.operands[:2]
            groups.setdefault((x, "bias" in weights.type.parts), {})[layers[weights]] = None
    grouped: set[str] = set()
    chosen: list[tuple[str, ...]] = []
    for group in groups.values():
        if len(group) > 1 and grouped.isdisjoint(group):
            grouped.update(group)
            chosen.append(tuple(group))
    return chosen


def pack_weights(model: Simulator) -> None:
    """Move the weights of each of the simulator's `shared_inputs` into one piece; do nothing where they lie so
    already."""
    if model.device.type not in DEVICES:
        return
    for names in model.shared_inputs:
        layers = [model.prefix(name) for name in names]
        if _packable(layers):
            _pack([layer.weight for layer in layers])
            if "bias" in layers[0].parts:
                _pack([layer.bias for layer in layers])


def packed_linear(model: Simulator, names: Sequence[str]) -> tuple[Tensor, Tensor | None] | None:
    """Return ``weight [sum dout, din]`` and ``bias [sum dout]`` of layers as views of the piece that they lie in.

    The bias is None if they have none. All is None where they do not lie in one piece.
    """
    if model.device.type not in DEVICES:
        return None
    layers = [model.prefix(name) for name in names]
    if not _packable(layers):
        return None
    weight = _as_one([layer.weight for layer in layers])
    if weight is None:
        return None
    if "bias" not in layers[0].parts:
        return weight.flatten(0, 1), None
    bias = _as_one([layer.bias for layer in layers])
    if bias is None:
        return None
    return weight.flatten(0, 1), bias


def _packable(layers: Sequence[Prefix]) -> bool:
    """Return whether no rows that only fill a prefix lie between the weights, and all are plain parameters."""
    parameters = [getattr(layer, part) for layer in layers for part in layer.parts]
    plain = all(isinstance(tensor, nn.Parameter) and not tensor.is_inference() for tensor in parameters)
    plain = plain and len({tensor.device for tensor in parameters}) == 1
    return plain and all(layer.weight.shape[:2].numel() == layer.holds.dims[0] for layer in layers)


def _pack(tensors: Sequence[Tensor]) -> None:
    """Put the tensors one after the other into memory that they share from here on."""
    if _adjacent(tensors):
        return
    with torch.inference_mode(False), torch.no_grad():
        piece = torch.cat([tensor.detach() for tensor in tensors])
        start = 0
        for tensor in tensors:
            tensor.data = piece[start : start + tensor.shape[0]]
            start += tensor.shape[0]


def _as_one(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return adjacent tensors as one, along their first dimension; None if they are not."""
    if not _adjacent(tensors):
        return None
    first = tensors[0].detach()
    shape = (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:])
    return first.as_strided(shape, first.stride(), first.storage_offset())


def _adjacent(tensors: Sequence[Tensor]) -> bool:
    storage = tensors[0].untyped_storage()._cdata
    offset = tensors[0].storage_offset()
    for tensor in tensors:
        place = (tensor.untyped_storage()._cdata, tensor.storage_offset())
        if place != (storage, offset) or not tensor.is_contiguous():
            return False
        offset += tensor.numel()
    return True
