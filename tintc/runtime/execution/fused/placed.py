"""Layers on several devices: where each op runs, and what it reads brought there.

An op runs where its layer's weights lie, and an op outside of all layers with the embeddings and the head. Values of
tokens go along: between two cards these are a layer's residual stream forward, its gradient backward, and what masks
and positions a layer there reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tintc.ir.core import Value
from tintc.ir.simulator import Add, Scale, SimOp, StoredWeights
from tintc.ir.simulator.interface.fused_base import FusedWeights
from tintc.runtime.execution.simulator import Simulator


def layer_devices(model: Simulator) -> dict[int, torch.device]:
    """Return where each layer's weights lie that are elsewhere than the embeddings; none where all lie together.

    What is outside of all layers, such as a last norm, runs where the weights lie that it reads.
    """
    devices = {op.layer: device for op, device in _weight_devices(model) if op.layer >= 0}
    return {layer: device for layer, device in devices.items() if device != model.device}


def devices_of(model: Simulator) -> list[torch.device]:
    """Return all devices that a run uses."""
    return list(dict.fromkeys((model.device, *(device for _, device in _weight_devices(model)))))


def _weight_devices(model: Simulator) -> list[tuple[SimOp, torch.device]]:
    """Return where each op's weights lie; nothing where all lie together."""
    if not model.placed:
        return []
    stored = [op for op in model.program.ops if isinstance(op, StoredWeights)]
    return [(op, next(model.prefix(op.name).parameters()).device) for op in stored]


def device_of(op: SimOp, operands: Sequence[Any], devices: dict[int, torch.device], main: torch.device) -> torch.device:
    """Return where an op runs: with the weights that it reads, or with its layer's. A sum of gradients outside of all
    layers runs where its first operand is."""
    for value in operands:
        if isinstance(value, FusedWeights):
            for part in (value.weight, value.bias, *(update.dy for update in value.pending)):
                if part is not None:
                    return part.device
    if op.layer < 0 and isinstance(op, Add | Scale):
        return operands[0].device
    return devices.get(op.layer, main)


class Copies:
    """Values of tokens on devices that they were not computed on: each is copied to a device once, as long as it lives,
    however many ops read it there."""

    def __init__(self) -> None:
        self._known: dict[Value, dict[torch.device, Tensor]] = {}

    def on(self, device: torch.device, value: Value, x: Any) -> Any:
        """Return what a value holds, or its first positions, on a device; weights where they are."""
        if not isinstance(x, Tensor) or x.device == device:
            return x
        known = self._known.setdefault(value, {})
        copy = known.get(device)
        if copy is None or copy.shape[1] < x.shape[1]:
            copy = x.to(device)
            known[device] = copy
        return copy[:, : x.shape[1]]

    def forget(self, value: Value) -> None:
        """Let go of the copies of a value that no later op reads."""
        self._known.pop(value, None)
