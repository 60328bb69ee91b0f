"""From the last hidden state to logits, and the gradients of the losses there (Appendix H)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LogitMap:
    """The map from a head's scores ``s = E x + b`` to logits: ``z = scale s``, then ``z = c tanh(z / c)`` with the soft
    cap c (0: none)."""

    scale: float = 1.0
    softcap: float = 0.0

    def __call__(self, scores: Tensor, overwrite: bool = False) -> Tensor:
        """Return logits, written over `scores` itself if that is allowed."""
        if self.scale != 1:
            scores = scores.mul_(self.scale) if overwrite else scores * self.scale
        if self.softcap == 0:
            return scores
        if overwrite:
            return scores.div_(self.softcap).tanh_().mul_(self.softcap)
        return (scores / self.softcap).tanh() * self.softcap

    def slope(self, logits: Tensor) -> Tensor | float:
        """Return dz/ds at the logits z: ``scale (1 - (z / c)^2)``."""
        if self.softcap == 0:
            return self.scale
        return self.scale * (1 - (logits / self.softcap).square())


PLAIN = LogitMap()


def loss_gradient(
    kind: str, x: Tensor, head: Tensor, bias: Tensor | None, next_ids: Tensor, logit_map: LogitMap = PLAIN
) -> Tensor:
    """Return the gradient of the summed loss with respect to the head's input, position by position, ``[..., D]``.

    ``x [..., D]``, ``head E [V, D]``, ``next_ids [...]``. With scores ``s = E x + b`` and logits z(s), ``ce``:
    ``E^T (dz/ds (softmax(z) - onehot))``; ``quad``: ``E^T (dz/ds (z - onehot))``, which for plain logits is
    ``E^T z - e_next``; ``mse``: ``x - e_next``, which no logits enter (Remark H.2).
    """
    target = head[next_ids]
    if kind == "mse":
        return x - target
    scores = F.linear(x, head, bias)
    slope = logit_map.slope(logit_map(scores))
    pull = slope.gather(-1, next_ids[..., None]) if isinstance(slope, Tensor) else slope
    return hidden(kind, scores, logit_map) @ head - target * pull


def hidden(kind: str, scores: Tensor, logit_map: LogitMap) -> Tensor:
    """Return ``dz/ds softmax(z)`` for ``ce``, ``dz/ds z`` for ``quad``: what multiplies E^T in the loss gradient,
    ``[..., V]``.

    scores ``[..., V]``: of the whole vocabulary.
    """
    logits = logit_map(scores)
    return (logits.softmax(-1) if kind == "ce" else logits) * logit_map.slope(logits)
