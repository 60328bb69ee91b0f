"""`Training`: how the prompts of one call of `generate` are trained on, whatever rows and tokens they grow to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from tintc.runtime.execution.rates import Rates


@dataclass
class Training:
    """How prompts of `length` tokens are trained on, in one call of `generate`.

    Masks are theirs, ``[B, T]`` or ``[N, B, T]``; settled: whether the train mask is what will be trained on.
    """

    length: int
    train_mask: Tensor | None = None
    loss_mask: Tensor | None = None
    rates: Rates | None = None
    settled: bool = False

    def arguments(self, rows: int, length: int) -> dict[str, Any]:
        """Return arguments of a forward pass, for prompts repeated up to so many rows and texts that have grown."""
        masks = {"train_mask": self.train_mask, "loss_mask": self.loss_mask}
        arguments: dict[str, Any] = {n: _fit(mask, rows, length) for n, mask in masks.items() if mask is not None}
        if self.rates is not None:
            arguments["inner_lr"] = self.rates.repeated(max(1, rows // self.rates.batch))
        return arguments


def _fit(mask: Tensor, rows: int, length: int) -> Tensor:
    """Return the mask for that many rows and tokens.

    Where the sizes do not allow it, it is left as it is: the forward pass says what is wrong.
    """
    if mask.dim() > 1 and mask.shape[-2] and rows % mask.shape[-2] == 0:
        mask = mask.repeat_interleave(rows // mask.shape[-2], -2)
    missing = max(0, length - mask.shape[-1])
    if missing:
        mask = F.pad(mask, (0, missing))
    return mask
