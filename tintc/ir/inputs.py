"""The inputs of a program: token ids, positions and masks, resolved from whatever a user passes.

Defaults are the published ones: positions count the tokens that are not padding, half of a text is trained on, and the
loss counts at position i only if i, i + 1 are train tokens and target i + 1 is not masked (construction.md, section 8).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from tintc.errors import InputError, OptionError


@dataclass(frozen=True)
class Inputs:
    """Resolved inputs: tensors on one device, and of how many last tokens logits are asked for.

    input_ids, position_ids ``[B, T]``; allowed ``[B, T, T]`` bool, which keys a query may see *before* the causal mask
    of the attention op; train ``[B, T]`` bool, tokens that descent sums over; counts ``[B, T]`` bool, positions whose
    loss counts. Both are ``[N, B, T]`` where every step trains on tokens of its own. kept: how many last tokens logits
    are asked for of; 0: of all.
    """

    input_ids: Tensor
    position_ids: Tensor
    allowed: Tensor
    train: Tensor
    loss_positions: Tensor
    kept: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Return (examples, tokens)."""
        batch, length = self.input_ids.shape
        return batch, length

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "kept"}

    def last(self, x: Tensor) -> Tensor:
        """Return those of token values ``[B, T, ...]`` that logits are asked for of."""
        return x[:, -self.kept :]

    def train_mask(self, step: int) -> Tensor:
        """Return the tokens that a step's descent sums over, ``[B, T]`` bool."""
        return _of_step(self.train, step)

    def loss_positions_of(self, step: int) -> Tensor:
        """Return the positions whose loss counts in a step, ``[B, T]`` bool."""
        return _of_step(self.loss_positions, step)

    @cached_property
    def plain(self) -> bool:
        """Return True if nothing is masked. A mask whose rows are views of its first one is looked at once."""
        allowed = self.allowed
        if allowed.stride(1) == 0:
            allowed = allowed[:, :1]
        return bool(allowed.all())

    @property
    def real_tokens(self) -> Tensor:
        """Return the tokens that are no padding, ``[B, T]`` bool: those that see themselves."""
        return self.allowed.diagonal(dim1=1, dim2=2)

    @cached_property
    def only_padding(self) -> bool:
        """Return True if padding alone is masked: who sees a token does not depend on who looks."""
        return self.plain or bool((self.allowed == self.real_tokens[:, None, :]).all())

    def knowing(self, plain: bool, only_padding: bool) -> Inputs:
        """Return these, of which that much is known whatever the tensors hold: nobody has to look at them."""
        self.__dict__.update(plain=plain, only_padding=only_padding)
        return self

    def to(self, device: torch.device) -> Inputs:
        """Return the inputs on a device, of which as much is known."""
        moved = Inputs(**{name: tensor.to(device) for name, tensor in self.tensors().items()}, kept=self.kept)
        known = {name: value for name, value in self.__dict__.items() if name in ("plain", "only_padding")}
        moved.__dict__.update(known)
        return moved

    def rows(self, start: int, stop: int) -> Inputs:
        """Return the inputs of examples start ... stop - 1 of the batch."""
        return self._taken(slice(start, stop))

    def each(self, count: int) -> Inputs:
        """Return the inputs of every count-th example."""
        if count == 1:
            return self
        return self._taken(slice(None, None, count))

    def _taken(self, rows: slice) -> Inputs:
        """Return the inputs of some examples. Masks by step have the examples second."""
        whole = self.tensors()
        by_step = {name: whole.pop(name) for name in ("train", "loss_positions") if whole[name].dim() == 3}
        taken = {name: tensor[:, rows] for name, tensor in by_step.items()}
        return Inputs(**taken, **{name: tensor[rows] for name, tensor in whole.items()}, kept=self.kept)

    def repeats(self) -> int:
        """Return the largest number k such that the batch consists of examples that stand k times side by side."""
        same = torch.ones(self.shape[0] - 1, dtype=torch.bool, device=self.input_ids.device)
        for name, tensor in self.tensors().items():
            if name == "allowed" and self.plain:
                continue
            if tensor.dim() == 3 and name in ("train", "loss_positions"):
                tensor = tensor.transpose(0, 1)
            rows = tensor.flatten(1)
            same &= (rows[1:] == rows[:-1]).all(1)
        starts = [0, *(torch.nonzero(~same).flatten() + 1).tolist(), self.shape[0]]
        return math.gcd(*(b - a for a, b in pairwise(starts)))

    @property
    def next_ids(self) -> Tensor:
        """Return the target of every position, ``[B, T]``; the last position's is itself, and never counts."""
        return torch.cat((self.input_ids[:, 1:], self.input_ids[:, -1:]), 1)


def _of_step(mask: Tensor, step: int) -> Tensor:
    """Return the mask ``[B, T]`` of a step, of one for all steps or for each ``[N, B, T]``."""
    if mask.dim() == 2:
        return mask
    return mask[step]


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
