"""`TintCache`: what a text's later tokens need, the weights that its train tokens have left among it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from tintc.runtime.adaptation.state import AdaptedWeights


class TintCache(Cache):
    """Keys and values by attention op of the last forward pass, one layer each, as transformers keeps them.

    state: the weights that they were made with, of which each example has as many rows of the batch as every other,
    side by side; None before the prompt has been read. positions, valid ``[B, m]``: of all tokens so far; valid is None
    while none is padding.
    """

    state: AdaptedWeights | None
    positions: Tensor | None
    valid: Tensor | None

    def __init__(self, layers: int, state: AdaptedWeights | None = None):
        super().__init__(layers=[DynamicLayer() for _ in range(layers)])
        self.state = state
        self.positions = None
        self.valid = None

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
