"""`Inputs`: all that a program is given with a text, as tensors, and what is known of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor


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
