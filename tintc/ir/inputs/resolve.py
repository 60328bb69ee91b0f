"""`resolve_inputs`: masks and positions of whatever form, with defaults for those that are not passed."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from tintc.errors import InputError, OptionError
from tintc.ir.inputs.checks import check_ids, check_tensor, matching
from tintc.ir.inputs.resolved import Inputs

ISOLATED = (
    "Nothing is trained on in a text whose train tokens are all isolated: a token is a target if it and the one before "
    "it, which predicts it, are in the train mask. Put the token before each target into it, and leave targets out "
    "with loss_mask."
)


def resolve_inputs(
    input_ids: Tensor,
    train_mask: Tensor | None = None,
    loss_mask: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    train_fraction: float = 0.5,
    semantics: str = "exact",
    n_steps: int | None = None,
) -> Inputs:
    """Return masks of any dtype (non-zero is true) and None as `Inputs`.

    attention_mask: ``[B, T]`` marks padding on either side, ``[B, T, T]`` says who sees whom. train_mask ``[B, T]``, or
    ``[N, B, T]`` for other tokens in each of the N steps (n_steps None: as many as there are); None: the first
    ``floor(train_fraction * length)`` tokens of each row that are not padding. A token is a target if it and the one
    before it, which predicts it, are train tokens; a row without any is not trained on, and is warned of. Raises
    `InputError` for what is no tensor, for shapes that do not fit and for non-integer ids.
    """
    check_ids(input_ids)
    if input_ids.shape[0] == 0 or input_ids.shape[1] == 0:
        raise InputError("The text is empty; pass at least one token.")
    shape = tuple(input_ids.shape)
    device = input_ids.device
    valid, allowed = _attention(attention_mask, shape, device)
    if position_ids is None:
        position_ids = (valid.long().cumsum(1) - 1).clamp(min=0)
    else:
        position_ids = matching("position_ids", position_ids, shape, device).long()
    if train_mask is None:
        train = _first_tokens(valid, train_fraction)
    else:
        train = _steps("train_mask", train_mask, shape, n_steps).to(device) != 0
    train = train & valid
    train = train & (train.sum(-1, keepdim=True) >= 2)
    target = torch.zeros_like(train)
    target[..., :-1] = train[..., 1:]
    counts = target & train if semantics == "exact" else target
    if train_mask is not None and bool((train.any(-1) & ~counts.any(-1)).any()):
        warnings.warn(ISOLATED, stacklevel=2)
    if loss_mask is not None:
        wanted = matching("loss_mask", loss_mask, shape, device) != 0
        counts[..., :-1] &= wanted[:, 1:]
    return Inputs(input_ids.long(), position_ids, allowed, train, counts)


def _attention(mask: Tensor | None, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (tokens that are not padding ``[B, T]``, who sees whom ``[B, T, T]``), both bool."""
    batch, length = shape
    valid = torch.ones(shape, dtype=torch.bool, device=device)
    if mask is None:
        return valid, valid[:, None, :].expand(batch, length, length)
    check_tensor("attention_mask", mask)
    if tuple(mask.shape) == shape:
        valid = mask.to(device) != 0
        if not bool(valid.any(1).all()):
            raise InputError("attention_mask leaves a row without any token; drop that row.")
        return valid, valid[:, None, :].expand(batch, length, length)
    if tuple(mask.shape) == (batch, length, length):
        return valid, mask.to(device) != 0
    raise InputError(
        f"attention_mask has shape {tuple(mask.shape)}; it must be {shape} (padding) or {(batch, length, length)}."
    )


def _steps(name: str, mask: Tensor, shape: tuple[int, ...], n_steps: int | None) -> Tensor:
    """Return `mask`; raise `InputError` unless it has this shape, or this shape for every step."""
    check_tensor(name, mask)
    if n_steps is None and mask.dim() == 3:
        n_steps = mask.shape[0]
    if mask.shape in (shape, (n_steps, *shape)):
        return mask
    every = "have one such mask for every step"
    if n_steps is not None:
        every = f"{(n_steps, *shape)}, a mask for every step"
    raise InputError(f"{name} has shape {tuple(mask.shape)}; it must have the shape of input_ids, {shape}, or {every}.")


def _first_tokens(valid: Tensor, fraction: float) -> Tensor:
    """Return the mask of the first `fraction` of every row's valid tokens; raise `OptionError` unless 0 < fraction <
    1."""
    if not 0 < fraction < 1:
        raise OptionError(f"The train fraction is {fraction}; it must lie between 0 and 1, both excluded.")
    budget = (valid.sum(1, keepdim=True).double() * fraction).floor()
    return valid & (valid.long().cumsum(1) <= budget)
