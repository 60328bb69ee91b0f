"""NaN and infinity in tensors, found by reading them once."""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 1 << 22
SUMMED = (torch.float32, torch.float64, torch.bfloat16)


def is_finite(tensor: Tensor) -> bool:
    """Return True if no entry is NaN or infinite.

    Looks at a piece at a time: `isfinite` takes more memory than what it looks at. A finite sum has finite terms, and
    is cheaper.
    """
    pieces = tensor.detach().reshape(-1).split(PIECE)
    return all(_has_finite_sum(piece) or bool(torch.isfinite(piece).all()) for piece in pieces)


def _has_finite_sum(piece: Tensor) -> bool:
    return piece.dtype in SUMMED and bool(torch.isfinite(piece.sum()))
