"""A short causal convolution of every channel on its own, and its transpose."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def apply_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, real: Tensor | None = None, padding: Tensor | None = None
) -> Tensor:
    """Return ``sum_i w_ci x_(t-i)c + b_c``, ``[B, T, C]``, for ``weight [C, w]`` whose last column is of the token
    itself.

    real ``[B, T]``: tokens that are no padding (None: all); the others count as ``padding [C]`` (None: zero).
    """
    y, _ = continue_convolution(x, weight, bias, real, padding, None)
    return y


def continue_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    real: Tensor | None,
    padding: Tensor | None,
    before: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the convolution at the tokens of ``x [B, n, C]``, and the last inputs that later tokens reach.

    Those, and `before`, are ``[B, w - 1, C]``; before: of the tokens before (None: there are none).
    """
    if real is not None and padding is not None:
        x = torch.where(real[..., None], x, padding.to(x.dtype))
    else:
        x = _without_padding(x, real)
    reach = weight.shape[-1] - 1
    if before is None:
        before = x.new_zeros(x.shape[0], reach, x.shape[2])
    rows = torch.cat((before, x), 1)
    last = rows[:, rows.shape[1] - reach :]
    if x.shape[1] > 1:
        last = last.clone()  # or all rows would stay as long as it does
    return _weighted(rows, weight.to(x.dtype), bias, x.shape[1]), last


def apply_transposed_convolution(dy: Tensor, weight: Tensor, real: Tensor | None = None) -> Tensor:
    """Return ``sum_i w_ci dy_(t+i)c``, ``[B, T, C]``: the gradient of what the convolution reads."""
    rows = F.pad(dy, (0, 0, 0, weight.shape[-1] - 1))
    return _without_padding(_weighted(rows, weight.flip(-1).to(dy.dtype), None, dy.shape[1]), real)


def _weighted(rows: Tensor, weight: Tensor, bias: Tensor | None, count: int) -> Tensor:
    """Return ``sum_i w_ci rows_(t+i)c + b_c`` at `count` tokens. One lag after the other, in the layout of the rows, is
    faster than a grouped convolution, which wants channels first; for one token, all lags at once."""
    if count == 1:
        y = (rows * weight.transpose(0, 1)).sum(1, keepdim=True)
        if bias is not None:
            y = y + bias.to(y.dtype)
        return y
    columns = weight.unbind(-1)
    y = rows[:, :count] * columns[0]
    if bias is not None:
        y = y + bias.to(y.dtype)
    for lag, column in enumerate(columns[1:], 1):
        y = y.addcmul_(rows[:, lag : lag + count], column)
    return y


def _without_padding(x: Tensor, real: Tensor | None) -> Tensor:
    if real is None:
        return x
    return x * real[..., None]
