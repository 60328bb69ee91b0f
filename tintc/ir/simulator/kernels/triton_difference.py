"""Derivatives of activations and gated units by differences: one read of every operand and one write of every result.

Their plain twin is `tintc.ir.simulator.interface.fused_kernels.fused_slope`, whose arithmetic this is.
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
def _activate(x, FN: tl.constexpr):
    if FN == "relu":
        y = tl.maximum(x, 0.0)
    elif FN == "relu2":
        y = tl.maximum(x, 0.0)
        y = y * y
    elif FN == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif FN == "gelu_tanh":
        y = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif FN == "quick_gelu":
        y = x / (1.0 + tl.exp(-1.702 * x))
    elif FN == "silu":
        y = x / (1.0 + tl.exp(-x))
    else:
        y = x
    return y


@triton.jit
def _difference(
    p, x, width, STEP: tl.constexpr, TINY: tl.constexpr, FN: tl.constexpr, PER_TOKEN: tl.constexpr,
    CENTRAL: tl.constexpr,
):  # fmt: skip
    """Return act'(x) p by a difference; p and x are one vector, and zero where there is none of it."""
    h = tl.full((), STEP, tl.float32)
    if PER_TOKEN:
        h = STEP / tl.maximum(tl.sqrt(tl.sum(p * p, 0) / width), TINY)
    ahead = _activate(x + h * p, FN)
    if CENTRAL:
        return (ahead - _activate(x - h * p, FN)) / (2.0 * h)
    return (ahead - _activate(x, FN)) / h


@triton.jit
def _activation_kernel(
    dy_ptr, x_ptr, dx_ptr, n, width, dy_batch, dy_row, x_batch, x_row,
    STEP: tl.constexpr, TINY: tl.constexpr, FN: tl.constexpr, PER_TOKEN: tl.constexpr, CENTRAL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    b, t = row // n, row % n
    columns = tl.arange(0, BLOCK)
    here = columns < width
    p = tl.load(dy_ptr + b * dy_batch + t * dy_row + columns, mask=here, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + b * x_batch + t * x_row + columns, mask=here, other=0.0).to(tl.float32)
    dx = _difference(p, x, width, STEP, TINY, FN, PER_TOKEN, CENTRAL)
    tl.store(dx_ptr + row * width + columns, dx, mask=here)


@triton.jit
def _gate_kernel(
    dy_ptr, g_ptr, u_ptr, dg_ptr, du_ptr, n, width, dy_batch, dy_row, g_batch, g_row, u_batch, u_row,
    STEP: tl.constexpr, TINY: tl.constexpr, FN: tl.constexpr, PER_TOKEN: tl.constexpr, CENTRAL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    b, t = row // n, row % n
    columns = tl.arange(0, BLOCK)
    here = columns < width
    dy = tl.load(dy_ptr + b * dy_batch + t * dy_row + columns, mask=here, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + b * g_batch + t * g_row + columns, mask=here, other=0.0).to(tl.float32)
    u = tl.load(u_ptr + b * u_batch + t * u_row + columns, mask=here, other=0.0).to(tl.float32)
    tl.store(dg_ptr + row * width + columns, dy * _activate(u, FN), mask=here)
    du = _difference(dy * g, u, width, STEP, TINY, FN, PER_TOKEN, CENTRAL)
    tl.store(du_ptr + row * width + columns, du, mask=here)


def activation_backward(fn: str, difference: FiniteDifference, dy: Tensor, x: Tensor) -> Tensor:
    """Return ``act'(x) dy`` ``[B, ..., D]``, in the dtype of x."""
    rows, given = as_rows(x), as_rows(dy)
    dx = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
    block, warps = block_of(x.shape[-1])
    with torch.cuda.device_of(x):
        _activation_kernel[(rows.shape[0] * rows.shape[1],)](
            given, rows, dx, rows.shape[1], rows.shape[2], given.stride(0), given.stride(1), rows.stride(0),
            rows.stride(1), FN=fn, BLOCK=block, num_warps=warps, **constants(difference),
        )  # fmt: skip
    return dx.view(x.shape)


def gate_backward(fn: str, difference: FiniteDifference, dy: Tensor, g: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``dy act(u)`` and ``act'(u) dy g``, both ``[B, ..., D]``, in the dtype of u."""
    given, gates, rows = as_rows(dy), as_rows(g), as_rows(u)
    dg, du = (torch.empty(rows.shape, dtype=u.dtype, device=u.device) for _ in range(2))
    block, warps = block_of(u.shape[-1])
    with torch.cuda.device_of(u):
        _gate_kernel[(rows.shape[0] * rows.shape[1],)](
            given, gates, rows, dg, du, rows.shape[1], rows.shape[2], given.stride(0), given.stride(1), gates.stride(0),
            gates.stride(1), rows.stride(0), rows.stride(1), FN=fn, BLOCK=block, num_warps=warps,
            **constants(difference),
        )  # fmt: skip
    return dg.view(u.shape), du.view(u.shape)
