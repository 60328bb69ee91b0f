"""Rotations by position, with cosines and sines kept for as long as the positions stay."""

from __future__ import annotations

import torch
from torch import Tensor

from tintc.runtime.execution.simulator import Simulator


class RotaryCache:
    """RotaryCache heads at ``position_ids [B, T]`` by the model's frequencies, as `tintc.ir.functions.rotate` does."""

    def __init__(self, model: Simulator, position_ids: Tensor):
        self.model, self.position_ids = model, position_ids
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def apply_rotary(self, heads: Tensor, inv_freq: str, style: str, start: int = 0) -> Tensor:
        """Heads ``[B, H, n, d]`` at n positions from `start` on; the heads themselves if `inv_freq` is empty."""
        if not inv_freq:
            return heads
        here = slice(start, start + heads.shape[2])
        cos, sin = (table[:, :, here].to(heads.dtype) for table in self._tables(inv_freq, style))
        n = cos.shape[-1]
        turned = heads[..., :n]
        if style == "half":
            partner = torch.cat((turned[..., n // 2 :], turned[..., : n // 2]), -1)
        else:
            partner = turned.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        turned = torch.addcmul(turned * cos, partner, sin)
        return turned if n == heads.shape[-1] else torch.cat((turned, heads[..., n:]), -1)

    def _tables(self, inv_freq: str, style: str) -> tuple[Tensor, Tensor]:
        """What a coordinate and its partner in the pair are multiplied by: ``[B, 1, T, d]``."""
        if inv_freq not in self._known:
            frequencies = self.model.rotary_table(inv_freq)
            angle = self.position_ids[:, None, :, None].to(frequencies.dtype) * frequencies
            cos, sin = angle.cos(), angle.sin()
            if style == "half":
                self._known[inv_freq] = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
            else:
                pairs = torch.stack((cos, cos), -1), torch.stack((-sin, sin), -1)
                self._known[inv_freq] = pairs[0].flatten(-2), pairs[1].flatten(-2)
        return self._known[inv_freq]
