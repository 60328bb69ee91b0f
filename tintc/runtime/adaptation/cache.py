"""`TintCache`: what a text's later tokens need, the weights that its train tokens have left among it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from tintc.errors import OptionError
from tintc.runtime.adaptation.state import AdaptedWeights

NO_WAY_BACK = (
    "This model has layers that carry a state from token to token, which cannot be cropped back to an earlier token; "
    "copy the cache before those tokens (copy.deepcopy), or read the text again."
)


class StateLayer:
    """The state that an op carries from token to token, as a layer of a cache; None before the first.

    It is replaced by every token and never written over, so that autograd and copies of a cache keep what they read.
    """

    is_compileable = False
    is_croppable = False
    is_initialized = False
    is_sliding = False
    supports_early_init = False

    def __init__(self) -> None:
        self.state: Tensor | None = None

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.state = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.state is not None:
            self.state = self.state.repeat_interleave(repeats, 0)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.state is not None:
            self.state = self.state[indices.to(self.state.device)]

    def crop(self, tokens_to_remove: int) -> None:
        """Raise `OptionError` if any token is to be removed."""
        if tokens_to_remove and self.state is not None:
            raise OptionError(NO_WAY_BACK)


class TintCache(Cache):
    """What the ops that mix tokens keep of the last forward pass, one layer each: keys and values of attention, as
    transformers keeps them, or a `StateLayer`.

    state: the weights that they were made with, of which each example has as many rows of the batch as every other,
    side by side; None before the prompt has been read. lent: whether tensors are views of what a recorded step writes
    over. positions, valid ``[B, m]``: of all tokens so far; valid is None while none is padding.
    """

    state: AdaptedWeights | None
    positions: Tensor | None
    valid: Tensor | None

    def __init__(self, carrying: Iterable[bool], state: AdaptedWeights | None = None):
        """Begin empty. carrying: for each op that mixes tokens, whether it carries a state instead of keys and
        values."""
        layers: list[Any] = [StateLayer() if carries else DynamicLayer() for carries in carrying]
        super().__init__(layers=layers)
        self.state = state
        self.positions = None
        self.valid = None
        self.lent = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        if self.positions is None:
            return 0
        return self.positions.shape[1]

    def extend(self, positions: Tensor, valid: Tensor | None) -> None:
        """Add the positions, ``[B, n]``, of more tokens, and which of them are no padding (None: all)."""
        past = self.positions
        if past is None:
            past = positions[:, :0]
        if valid is not None or self.valid is not None:
            self.valid = torch.cat((_all_valid(past, self.valid), _all_valid(positions, valid)), 1)
        self.positions = torch.cat((past, positions), 1)

    def branched(self) -> Self:
        """Return a cache that goes on from the same tokens and leaves this one as it is.

        Nothing is copied, as what is kept is replaced and never written over, but for what a recorded step has lent.
        """
        branch = copy.copy(self)
        copied = copy.copy
        if self.lent:
            copied = copy.deepcopy
        branch.layers = [copied(layer) for layer in self.layers]
        branch.lent = False
        return branch

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Exchange rows among those of one example, whose weights they share."""
        super().reorder_cache(beam_idx)
        self._change(lambda tokens: tokens[beam_idx.to(tokens.device)])

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change what is known of every token, ``[B, m]``, where anything is."""
        if self.positions is not None:
            self.positions = change(self.positions)
        if self.valid is not None:
            self.valid = change(self.valid)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; raise `OptionError`, before anything is changed, if a layer carries a state."""
        for layer in self.layers:
            if isinstance(layer, StateLayer):
                layer.crop(tokens_to_remove)
        super().crop(tokens_to_remove)
        if tokens_to_remove and self.positions is not None:
            kept = self.positions.shape[1] - abs(tokens_to_remove)
            self._change(lambda tokens: tokens[:, :kept])

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._change(lambda tokens: tokens.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, each with weights of its own unless all rows share one example's."""
        super().batch_select_indices(indices)
        if self.state is not None and self.positions is not None:
            self.state = self.state.rows(indices, self.positions.shape[0])
        self._change(lambda tokens: tokens[indices.to(tokens.device)])

    def reset(self) -> None:
        super().reset()
        self.positions = self.valid = self.state = None


def _all_valid(positions: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return torch.ones_like(positions, dtype=torch.bool)
    return valid
