"""The derivative of a norm by differences: one read of dy and x, one write of dx.

Its plain twin is `tintc.ir.simulator.ops.norm_backward.NormBackward`, whose formulas from three sums these are.
"""

# The bodies of kernels are Triton's language, not Python, and Triton need not be installed.
# pyright: reportMissingParameterType=false, reportMissingImports=false, reportIndexIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tintc.ir.functions import FiniteDifference
from tintc.ir.simulator.kernels.rows import as_rows, block_of, constants


@triton.jit
def _norm_kernel(
    dy_ptr, x_ptr, gain_ptr, dx_ptr, n, width, dy_batch, dy_row, x_batch, x_row, gain_batch,
    EPS: tl.constexpr, STEP: tl.constexpr, GROUPS: tl.constexpr, HAS_GAIN: tl.constexpr, LAYER: tl.constexpr,
    PER_TOKEN: tl.constexpr, CENTRAL: tl.constexpr, TINY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Emit dx of one group of one token's vector; `width` is the group's."""
    program = tl.program_id(0).to(tl.int64)
    group = program % GROUPS
    row = program // GROUPS
    b, t = row // n, row % n
    columns = tl.arange(0, BLOCK)
    here = columns < width
    places = group * width + columns
    g = tl.load(dy_ptr + b * dy_batch + t * dy_row + places, mask=here, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + b * x_batch + t * x_row + places, mask=here, other=0.0).to(tl.float32)
    if HAS_GAIN:
        g = g * tl.load(gain_ptr + b * gain_batch + places, mask=here, other=0.0).to(tl.float32)
    m = 0.0
    if LAYER:
        x = tl.where(here, x - tl.sum(x, 0) / width, 0.0)
        m = tl.sum(g, 0) / width
    s = tl.sqrt(tl.sum(x * x, 0) / width + EPS)
    f = x / s
    size = tl.sqrt(tl.sum(g * g, 0) / width)
    p = 2.0 * tl.sum(x * g, 0) / width
    q = size * size - m * m
    h = tl.full((), STEP, tl.float32)
    if PER_TOKEN:
        h = s * (STEP / tl.maximum(size, TINY))
    if CENTRAL:
        even = s * s + h * h * q
        ahead = 1.0 / tl.sqrt(even + h * p)
        behind = 1.0 / tl.sqrt(even - h * p)
        weight = (ahead + behind) / 2.0
        rest = -p * ahead * behind / (1.0 / ahead + 1.0 / behind) * s
    else:
        change = p + h * q
        weight = 1.0 / tl.sqrt(s * s + h * change)
        rest = -change * weight / (s + 1.0 / weight)
    tl.store(dx_ptr + row * width * GROUPS + places, (g - m) * weight + f * rest, mask=here)


def norm_backward(
    kind: str, groups: int, eps: float, difference: FiniteDifference, dy: Tensor, x: Tensor, gain: Tensor | None
) -> Tensor:
    """Return the derivative of a norm of x ``[B, ..., D]`` along ``dy gain``, in the dtype of x.

    kind: ``layer`` or ``rms``; gain: ``[1, D]``, or ``[B, D]`` of each example. A step per token is also multiplied by
    the norm's scale there.
    """
    rows, given = as_rows(x), as_rows(dy)
    dx = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
    width = rows.shape[2] // groups
    block, warps = block_of(width)
    gain_batch = 0
    if gain is not None and gain.shape[0] > 1:
        gain_batch = gain.stride(0)
    with torch.cuda.device_of(x):
        _norm_kernel[(rows.shape[0] * rows.shape[1] * groups,)](
            given, rows, rows if gain is None else gain, dx, rows.shape[1], width, given.stride(0), given.stride(1),
            rows.stride(0), rows.stride(1), gain_batch, EPS=eps, GROUPS=groups, HAS_GAIN=gain is not None,
            LAYER=kind == "layer", BLOCK=block, num_warps=warps, **constants(difference),
        )  # fmt: skip
    return dx.view(x.shape)
