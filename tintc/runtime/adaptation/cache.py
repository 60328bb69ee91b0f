"""`TintCache`: what a text's later tokens need, the weights that its train tokens have left among it."""

from __future__ import annotations

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
        self.state, self.positions, self.valid = state, None, None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.positions is None else self.positions.shape[1]

    def extend(self, positions: Tensor, valid: Tensor | None) -> None:
        """More tokens, ``[B, n]`` each."""
        if valid is not None or self.valid is not None:
            past = positions[:, :0] if self.positions is None else self.positions
            parts = ((past, self.valid), (positions, valid))
            self.valid = torch.cat([torch.ones_like(p, dtype=torch.bool) if v is None else v for p, v in parts], 1)
        self.positions = positions if self.positions is None else torch.cat((self.positions, positions), 1)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Rows change places among those of one example, whose weights they share."""
        super().reorder_cache(beam_idx)
        self._take(beam_idx)

    def _take(self, rows: Tensor) -> None:
        self.positions = None if self.positions is None else self.positions[rows.to(self.positions.device)]
        self.valid = None if self.valid is None else self.valid[rows.to(self.valid.device)]

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        if tokens_to_remove and self.positions is not None:
            kept = self.positions.shape[1] - abs(tokens_to_remove)
            self.positions = self.positions[:, :kept]
            self.valid = None if self.valid is None else self.valid[:, :kept]

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.positions = None if self.positions is None else self.positions.repeat_interleave(repeats, 0)
        self.valid = None if self.valid is None else self.valid.repeat_interleave(repeats, 0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Each row that stays gets weights of its own, unless all rows share one example's."""
        super().batch_select_indices(indices)
        if self.state is not None and self.positions is not None:
            self.state = self.state.rows(indices, self.positions.shape[0])
        self._take(indices)

    def reset(self) -> None:
        super().reset()
        self.positions = self.valid = self.state = None
