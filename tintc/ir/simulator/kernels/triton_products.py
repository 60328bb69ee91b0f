"""A product with weights and one with a pending update, into one output that is written once.

Its plain twins are `apply_linear` and `apply_transposed` of `tintc.ir.simulator.interface.fused_kernels`.
"""

# The bodies of kernels are Triton's language, not Python, and Triton need not be installed.
# pyright: reportMissingParameterType=false, reportMissingImports=false, reportIndexIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tintc.ir.simulator.kernels.rows import precision
from tintc.ir.simulator.kernels.triton_dot import dot

ROWS, COLUMNS, INNER = 64, 64, 32


@triton.jit
def _products_kernel(
    x_ptr, a_ptr, s_ptr, b_ptr, bias_ptr, y_ptr, n, width, tokens, out, x_batch, x_row, a_batch, a_row, a_column,
    s_batch, s_row, b_batch, b_row, bias_batch, shift, rate, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Emit a tile of ``x a + bias + rate (s + shift) b`` of one example."""
    example = tl.program_id(2).to(tl.int64)
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    columns = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :].to(tl.int64)
    inner = tl.arange(0, INNER).to(tl.int64)  # a text's rows of a vocabulary may have over 2^31 numbers
    total = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    for start in range(0, tokens, INNER):
        here = start + inner
        s_places = s_ptr + example * s_batch + rows * s_row + here[None, :]
        known = (rows < n) & (here[None, :] < tokens)
        s = tl.load(s_places, mask=known, other=0.0)
        s = tl.where(known, s.to(tl.float32) + shift, 0.0).to(s.dtype)
        b_places = b_ptr + example * b_batch + here[:, None] * b_row + columns
        b = tl.load(b_places, mask=(here[:, None] < tokens) & (columns < out), other=0.0)
        total += dot(s, b, PRECISION)
    total = total * rate
    for start in range(0, width, INNER):
        here = start + inner
        x_places = x_ptr + example * x_batch + rows * x_row + here[None, :]
        x = tl.load(x_places, mask=(rows < n) & (here[None, :] < width), other=0.0)
        a_places = a_ptr + example * a_batch + here[:, None] * a_row + columns * a_column
        a = tl.load(a_places, mask=(here[:, None] < width) & (columns < out), other=0.0)
        total += dot(x, a, PRECISION)
    if HAS_BIAS:
        total += tl.load(bias_ptr + example * bias_batch + columns, mask=columns < out, other=0.0).to(tl.float32)
    y_places = y_ptr + (example * n + rows) * out + columns
    tl.store(y_places, total, mask=(rows < n) & (columns < out))


def two_products(
    x: Tensor, a: Tensor, bias: Tensor | None, s: Tensor, b: Tensor, shift: float = 0.0, rate: float = 1.0
) -> Tensor:
    """Return ``x a + bias + rate (s + shift) b``, ``[B, n, N]``, in the dtype of x.

    ``x [B, n, K]``, ``a [K, N]`` or of each example ``[B, K, N]``, bias ``[N]`` or ``[B, N]``, ``s [B, n, t]``, ``b [B,
    t, N]``.
    """
    x, s, b = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (x, s, b))
    batch, n, width = x.shape
    out = a.shape[-1]
    y = torch.empty(batch, n, out, dtype=x.dtype, device=x.device)
    given = x
    bias_batch = 0
    if bias is not None:
        given = bias.contiguous()
        bias_batch = out if bias.dim() == 2 else 0
    a_batch = a.stride(0) if a.dim() == 3 else 0
    with torch.cuda.device_of(x):
        _products_kernel[(triton.cdiv(n, ROWS), triton.cdiv(out, COLUMNS), batch)](
            x, a, s, b, given, y, n, width, s.shape[-1], out, x.stride(0), x.stride(1), a_batch, a.stride(-2),
            a.stride(-1), s.stride(0), s.stride(1), b.stride(0), b.stride(1), bias_batch, float(shift), float(rate),
            HAS_BIAS=bias is not None, PRECISION=precision(x), ROWS=ROWS, COLUMNS=COLUMNS, INNER=INNER,
        )  # fmt: skip
    return y
