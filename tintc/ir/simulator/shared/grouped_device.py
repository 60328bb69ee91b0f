"""Grouped products on a GPU: those of `grouped`, without the host knowing who has chosen which expert."""

from __future__ import annotations

import torch
from torch import Tensor

from tintc.ir.simulator.interface.fused_base import FusedWeights, Pending
from tintc.ir.simulator.kernels.grouped import grouped_pairs, grouped_product


def linear_on_device(w: FusedWeights, experts: Tensor, x: Tensor) -> Tensor:
    """Return ``W_e x + b_e`` of every vector ``x [B, n, k, din]``, pending updates included: ``[B, n, k, dout]``.

    experts: ``[B, n, k]``.
    """
    y, flat, keys = _product(w, experts, x, transposed=False)
    if w.bias is not None:
        y = y + w.bias.reshape(-1, w.bias.shape[-1])[_weight_keys(w.bias, 2, experts)]
    for update in w.pending:
        y = grouped_pairs(
            y, flat, keys, _inputs(update), update.dy.flatten(0, 1), _pair_keys(w, update), update.bias, update.rate
        )
    return y.unflatten(0, x.shape[:3])


def transposed_on_device(w: FusedWeights, experts: Tensor, dy: Tensor) -> Tensor:
    """Return ``W_e^T dy`` of every vector ``dy [B, n, k, dout]``, pending updates included: ``[B, n, k, din]``."""
    dx, flat, keys = _product(w, experts, dy, transposed=True)
    for update in w.pending:
        dx = grouped_pairs(
            dx, flat, keys, update.dy.flatten(0, 1), _inputs(update), _pair_keys(w, update), 0, update.rate
        )
    return dx.unflatten(0, dy.shape[:3])


def _product(w: FusedWeights, experts: Tensor, x: Tensor, transposed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return (the product with stored or carried-out weights, the vectors, their keys by example and expert), flat."""
    assert w.weight is not None
    flat = x.reshape(-1, x.shape[-1])
    stack = w.weight.flatten(0, -3)
    y = grouped_product(flat, stack, _weight_keys(w.weight, 3, experts), transposed)
    return y, flat, _keys(experts.flatten(1), w.weight.shape[-3])


def _weight_keys(stack: Tensor, dims: int, experts: Tensor) -> Tensor:
    """Return which of the weights ``[E, ...]``, or ``[B, E, ...]`` of each example, every vector meets."""
    if stack.dim() == dims:
        return experts.flatten()
    return _keys(experts.flatten(1), stack.shape[1])


def _keys(experts: Tensor, count: int) -> Tensor:
    """Return ``example * count + expert`` of every vector, flat; ``experts [B, N]``."""
    examples = torch.arange(experts.shape[0], device=experts.device)
    return (experts + count * examples[:, None]).flatten()


def _pair_keys(w: FusedWeights, update: Pending) -> Tensor:
    """Return the keys of an update's vectors."""
    assert w.weight is not None and update.experts is not None
    return _keys(update.experts, w.weight.shape[-3])


def _inputs(update: Pending) -> Tensor:
    """Return the input of every vector of an update, flat."""
    return update.x.repeat_interleave(update.dy.shape[1] // update.x.shape[1], 1).flatten(0, 1)
