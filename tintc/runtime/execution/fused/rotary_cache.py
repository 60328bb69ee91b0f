"""Rotations by position, with cosines and sines kept for as long as the positions stay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class RotaryCache:
    """Rotates heads at ``position_ids [B, T]`` by the model's frequencies, as `tintc.ir.functions.rotate` does."""

    def __init__(self, score_vector: Callable[[str], Tensor], position_ids: Tensor):
        self.score_vector = score_vector
        self.position_ids = position_ids
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def apply_rotary(self, heads: Tensor, inv_freq: str, style: str, start: int = 0, back: bool = False) -> Tensor:
        """Return heads ``[B, H, n, d]`` rotated at n positions from `start` on, or turned back by the same angles; as
        they are if `inv_freq` is empty."""
        if not inv_freq:
            return heads
        here = slice(start, start + heads.shape[2])
        cos, sin = (table[:, :, here].to(heads.dtype) for table in self._tables(inv_freq, style))
        n = cos.shape[-1]
        x = heads[..., :n]
        if style == "half":
            partner = torch.cat((x[..., n // 2 :], x[..., : n // 2]), -1)
        else:
            partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        rotated = torch.addcmul(x * cos, partner, sin, value=-1 if back else 1)
        if n == heads.shape[-1]:
            return rotated
        return torch.cat((rotated, heads[..., n:]), -1)

    def _tables(self, inv_freq: str, style: str) -> tuple[Tensor, Tensor]:
        """Return the factors of a coordinate and of its partner in the pair: ``[B, 1, T, d]`` each."""
        if inv_freq not in self._known:
            frequencies = self.score_vector(inv_freq)
            angle = self.position_ids[:, None, :, None].to(frequencies.dtype) * frequencies
            cos = angle.cos()
            sin = angle.sin()
            if style == "half":
                self._known[inv_freq] = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
            else:
                own = torch.stack((cos, cos), -1).flatten(-2)
                partner = torch.stack((-sin, sin), -1).flatten(-2)
                self._known[inv_freq] = own, partner
        return self._known[inv_freq]
