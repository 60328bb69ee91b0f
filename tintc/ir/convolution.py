"""A short causal convolution of every channel on its own, and its transpose."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def apply_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, real: Tensor, padding: Tensor | None = None
) -> Tensor:
    """Return ``sum_i w_ci x_(t-i)c + b_c``, ``[B, T, C]``, for ``weight [C, w]`` whose last column is of the token
    itself.

    real ``[B, T]``: tokens that are no padding; the others count as ``padding [C]`` (None: zero).
    """
    width = weight.shape[-1]
    rows = F.pad(with_padding(x, real, padding).transpose(1, 2), (width - 1, 0))
    return F.conv1d(rows, weight[:, None].to(x.dtype), _in_dtype(bias, x), groups=x.shape[-1]).transpose(1, 2)


def with_padding(x: Tensor, real: Tensor, padding: Tensor | None) -> Tensor:
    """Return ``x [B, T, C]`` with ``padding [C]`` (None: zeros) at tokens that are padding."""
    if padding is None:
        return x * real[..., None]
    return torch.where(real[..., None], x, padding.to(x.dtype))


def apply_transposed_convolution(dy: Tensor, weight: Tensor, real: Tensor) -> Tensor:
    """Return ``sum_i w_ci dy_(t+i)c``, ``[B, T, C]``: the gradient of what the convolution reads."""
    width = weight.shape[-1]
    rows = F.pad(dy.transpose(1, 2), (0, width - 1))
    dx = F.conv1d(rows, weight.flip(-1)[:, None].to(dy.dtype), groups=dy.shape[-1]).transpose(1, 2)
    return dx * real[..., None]


def _in_dtype(bias: Tensor | None, x: Tensor) -> Tensor | None:
    if bias is None:
        return None
    return bias.to(x.dtype)
