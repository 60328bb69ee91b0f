"""Layers on several devices: where each op runs, and what it reads brought there.

An op runs where its layer's weights lie, and an op outside of all layers with the embeddings and the head. Values of
tokens go along, once for every device: between two cards these are a layer's residual stream forward, its gradient
backward, and what masks and positions a layer there reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tintc.ir.simulator import SimOp, StoredWeights
from tintc.ir.simulator.interface.fused_base import FusedWeights
from tintc.runtime.execution.simulator import Simulator


def layer_devices(model: Simulator) -> dict[int, torch.device]:
    """Return where each layer's weights lie that are elsewhere than the embeddings; none where all lie together."""
    devices: dict[int, torch.device] = {}
    if not model.placed:
        return devices
    for op in model.program.ops:
        if isinstance(op, StoredWeights):
            parameter = next(model.prefix(op.name).parameters())
            if parameter.device != model.device:
                devices[op.layer] = parameter.device
    return devices


def devices_of(model: Simulator) -> list[torch.device]:
    """Return all devices that a run uses."""
    return list(dict.fromkeys((model.device, *layer_devices(model).values())))


def device_of(op: SimOp, operands: Sequence[Any], devices: dict[int, torch.device], main: torch.device) -> torch.device:
    """Return where an op runs: with the weights that it reads, or with its layer's."""
    for value in operands:
        if isinstance(value, FusedWeights):
            for part in (value.weight, value.bias, *(update.dy for update in value.pending)):
                if part is not None:
                    return part.device
    return devices.get(op.layer, main)


def moved(value: Any, device: torch.device) -> Any:
    """Return a value of tokens on a device; weights where they are."""
    if isinstance(value, Tensor):
        return value.to(device)
    return value
