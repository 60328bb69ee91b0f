"""Weights of a state whose simulator was moved: to another device, or to other memory of the same."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tintc.ir.simulator.interface.fused_base import FusedWeights, Pending
from tintc.runtime.adaptation.fingerprint import WeightsSnapshot


def moved(w: FusedWeights, stored: FusedWeights, before: WeightsSnapshot, device: torch.device) -> FusedWeights:
    """Return weights of a state with those that are the simulator's own taken from `stored`, the rest on its device.

    before: where the simulator's own lay when the state was made; device: of layers that store none.
    """

    def part(tensor: Tensor | None, now: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        if now is not None and before.held(tensor) and tensor.shape == now.shape:
            return now
        return tensor.to(here)

    here = device
    for tensor in (stored.weight, stored.bias):
        if tensor is not None:
            here = tensor.device
    pending = tuple(_on_device(update, here) for update in w.pending)
    return replace(w, weight=part(w.weight, stored.weight), bias=part(w.bias, stored.bias), pending=pending)


def _on_device(update: Pending, device: torch.device) -> Pending:
    experts = update.experts
    if experts is not None:
        experts = experts.to(device)
    return replace(update, dy=update.dy.to(device), x=update.x.to(device), experts=experts)
