"""Checks of tensors that a user passes beside a text: a mistake is an `InputError`."""

from __future__ import annotations

import torch
from torch import Tensor

from tintc.errors import InputError


def check_ids(input_ids: object) -> Tensor:
    """Return token ids as they are; raise `InputError` unless these are token ids, ``[B, T]``."""
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or not _holds_integers(input_ids):
        raise InputError("input_ids must be a [batch, length] tensor of integers.")
    if input_ids.layout != torch.strided or input_ids.device.type == "meta":
        raise InputError("input_ids are sparse, or on the meta device; pass a dense tensor that holds numbers.")
    return input_ids


def _holds_integers(tensor: Tensor) -> bool:
    """Return True if the dtype is one of integers; booleans are none."""
    return not tensor.dtype.is_floating_point and tensor.dtype != torch.bool


def check_tensor(name: str, value: object) -> None:
    """Raise `InputError` for lists and the like."""
    if not isinstance(value, Tensor):
        raise InputError(f"{name} is of type {type(value).__name__}; pass a tensor, of the shape of input_ids.")


def check_positions(position_ids: Tensor, count: int) -> None:
    """Raise `InputError` for a position that a table of `count` positions does not have."""
    first = int(position_ids.min())
    last = int(position_ids.max())
    if first < 0 or last >= count:
        outside = first
        if first >= 0:
            outside = last
        raise InputError(f"Position {outside} is out of range; the model has {count} positions.")


def matching(name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return `tensor` on `device`; raise `InputError` unless it has this shape."""
    check_tensor(name, tensor)
    if tuple(tensor.shape) != shape:
        raise InputError(f"{name} has shape {tuple(tensor.shape)}; it must have the shape of input_ids, {shape}.")
    return tensor.to(device)
