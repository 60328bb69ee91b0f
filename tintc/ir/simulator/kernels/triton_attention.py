"""Attention backward through values only: ``dV = P^T dO``, without P in memory.

Two passes over blocks of scores: one for every query's log-sum-exp, one for the values' gradients, which makes a
block of P anew from it. Its plain twin is `tintc.ir.simulator.ops.attention_backward.AttentionBackward`.
"""

# The bodies of kernels are Triton's language, not Python, and Triton need not be installed.
# pyright: reportMissingParameterType=false, reportMissingImports=false, reportIndexIssue=false
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tintc.ir.simulator.kernels.rows import precision
from tintc.ir.simulator.kernels.triton_dot import dot


@dataclass(frozen=True)
class Scores:
    """How scores are made besides products.

    scale; soft_cap (0: none); mask: which keys a query sees ``[B or 1, 1, n, m]``, the causal rule included (None: that
    alone); slopes ``[H]`` with positions ``[B, m]`` for ALiBi; sinks ``[H]``.
    """

    scale: float
    soft_cap: float = 0.0
    mask: Tensor | None = None
    slopes: Tensor | None = None
    positions: Tensor | None = None
    sinks: Tensor | None = None


@triton.jit
def _scores(
    q, k, queries, keys, n, m, slope, positions_ptr, mask_ptr, mask_row, scale, cap,
    CAPPED: tl.constexpr, ALIBI: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return a block's scores ``[queries, keys]`` in fp32, minus infinity where a query does not see a key."""
    before = m - n
    s = dot(q, tl.trans(k), PRECISION) * scale
    if CAPPED:
        s = cap * (2.0 / (1.0 + tl.exp(-2.0 * s / cap)) - 1.0)
    if ALIBI:
        of_keys = tl.load(positions_ptr + keys, mask=keys < m, other=0)
        of_queries = tl.load(positions_ptr + before + queries, mask=queries < n, other=0)
        s += slope * (of_keys[None, :] - of_queries[:, None]).to(tl.float32)
    seen = (keys[None, :] <= before + queries[:, None]) & (keys[None, :] < m) & (queries[:, None] < n)
    if MASKED:
        places = queries[:, None].to(tl.int64) * mask_row + keys[None, :]
        seen &= tl.load(mask_ptr + places, mask=seen, other=0) != 0
    return tl.where(seen, s, float("-inf"))


@triton.jit
def _log_sums_kernel(
    q_ptr, k_ptr, out_ptr, slopes_ptr, positions_ptr, sinks_ptr, mask_ptr, heads, n, m, group,
    q_batch, q_head, q_row, k_batch, k_head, k_row, position_batch, mask_batch, mask_row, scale, cap,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CAPPED: tl.constexpr,
    ALIBI: tl.constexpr, MASKED: tl.constexpr, SUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Emit the log-sum-exp of the scores of a block of queries of one head."""
    blocks = tl.cdiv(n, ROWS)
    block = tl.program_id(0) % blocks
    head = tl.program_id(0) // blocks
    b = (head // heads).to(tl.int64)
    h = head % heads
    queries = block * ROWS + tl.arange(0, ROWS)
    inner = tl.arange(0, PADDED)
    q_places = q_ptr + b * q_batch + h * q_head + queries[:, None] * q_row + inner[None, :]
    q = tl.load(q_places, mask=(queries[:, None] < n) & (inner[None, :] < WIDTH), other=0.0)
    k_base = k_ptr + b * k_batch + (h // group) * k_head
    slope = 0.0
    if ALIBI:
        slope = tl.load(slopes_ptr + h)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.full((ROWS,), 0.0, tl.float32)
    if SUNK:
        top = total + tl.load(sinks_ptr + h).to(tl.float32)
        total += 1.0
    stop = tl.minimum(m, m - n + (block + 1) * ROWS)
    for start in range(0, stop, COLUMNS):
        keys = start + tl.arange(0, COLUMNS)
        k = tl.load(
            k_base + keys[:, None] * k_row + inner[None, :],
            mask=(keys[:, None] < m) & (inner[None, :] < WIDTH),
            other=0.0,
        )
        s = _scores(
            q, k, queries, keys, n, m, slope, positions_ptr + b * position_batch, mask_ptr + b * mask_batch, mask_row,
            scale, cap, CAPPED, ALIBI, MASKED, PRECISION,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(s, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - safe) + tl.sum(tl.exp(s - safe[:, None]), 1)
        top = higher
    # A query that sees nothing: plus infinity, with which every weight is zero.
    result = tl.where(total > 0.0, top + tl.log(tl.where(total > 0.0, total, 1.0)), float("inf"))
    tl.store(out_ptr + head.to(tl.int64) * n + queries, result, mask=queries < n)


@triton.jit
def _values_kernel(
    q_ptr, k_ptr, dy_ptr, sums_ptr, dv_ptr, slopes_ptr, positions_ptr, mask_ptr, heads, n, m, group,
    q_batch, q_head, q_row, k_batch, k_head, k_row, dy_batch, dy_head, dy_row, position_batch, mask_batch, mask_row,
    scale, cap, WIDTH: tl.constexpr, PADDED: tl.constexpr, VALUES: tl.constexpr, PADDED_VALUES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CAPPED: tl.constexpr, ALIBI: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Emit the gradients of a block of values of one key/value head: of all query heads that read it."""
    kv_heads = heads // group
    blocks = tl.cdiv(m, COLUMNS)
    block = tl.program_id(0) % blocks
    head = tl.program_id(0) // blocks
    b = (head // kv_heads).to(tl.int64)
    kv = head % kv_heads
    keys = block * COLUMNS + tl.arange(0, COLUMNS)
    inner = tl.arange(0, PADDED)
    across = tl.arange(0, PADDED_VALUES)
    k_places = k_ptr + b * k_batch + kv * k_head + keys[:, None] * k_row + inner[None, :]
    k = tl.load(k_places, mask=(keys[:, None] < m) & (inner[None, :] < WIDTH), other=0.0)
    dv = tl.full((COLUMNS, PADDED_VALUES), 0.0, tl.float32)
    # Earlier queries do not see the block's first key.
    first = tl.maximum(0, block * COLUMNS - (m - n)) // ROWS * ROWS
    for member in range(group):
        h = kv * group + member
        slope = 0.0
        if ALIBI:
            slope = tl.load(slopes_ptr + h)
        for start in range(first, n, ROWS):
            queries = start + tl.arange(0, ROWS)
            rows = queries[:, None]
            q_places = q_ptr + b * q_batch + h * q_head + rows * q_row + inner[None, :]
            q = tl.load(q_places, mask=(rows < n) & (inner[None, :] < WIDTH), other=0.0)
            dy_places = dy_ptr + b * dy_batch + h * dy_head + rows * dy_row + across[None, :]
            dy = tl.load(dy_places, mask=(rows < n) & (across[None, :] < VALUES), other=0.0)
            sums = tl.load(sums_ptr + (b * heads + h) * n + queries, mask=queries < n, other=float("inf"))
            s = _scores(
                q, k, queries, keys, n, m, slope, positions_ptr + b * position_batch, mask_ptr + b * mask_batch,
                mask_row, scale, cap, CAPPED, ALIBI, MASKED, PRECISION,
            )  # fmt: skip
            p = tl.exp(s - sums[:, None])
            dv += dot(tl.trans(p.to(dy.dtype)), dy, PRECISION)
    places = dv_ptr + (head.to(tl.int64) * m + keys[:, None]) * VALUES + across[None, :]
    tl.store(places, dv, mask=(keys[:, None] < m) & (across[None, :] < VALUES))


def side_of(width: int, itemsize: int) -> int:
    """Return how many queries, and keys, a block has: as many as registers and shared memory of an H100 take.

    width: of a padded head; itemsize: of its numbers. `tests/ir/test_compiled_kernels.py` compiles them.
    """
    if itemsize == 2:
        return 64 if width <= 128 else 32
    return 32 if width <= 64 else 16


def values_gradient(q: Tensor, k: Tensor, dy: Tensor, options: Scores) -> Tensor:
    """Return dV ``[B, H_kv, m, d_v]`` of queries ``[B, H, n, d]``, those of the last n tokens, keys ``[B, H_kv, m, d]``
    and the results' gradients ``[B, H, n, d_v]``."""
    q, k, dy = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, dy))
    batch, heads, n, width = q.shape
    kv_heads, m = k.shape[1:3]
    values = dy.shape[-1]
    sums = torch.empty(batch, heads, n, dtype=torch.float32, device=q.device)
    dv = torch.empty(batch, kv_heads, m, values, dtype=dy.dtype, device=q.device)
    padded = [max(16, 1 << (size - 1).bit_length()) for size in (width, values)]
    side = side_of(max(padded), dy.element_size())
    mask_strides = (0, 0)
    if options.mask is not None:
        mask_strides = (options.mask.stride(0) if options.mask.shape[0] > 1 else 0, options.mask.stride(2))
    position_batch = 0
    if options.positions is not None and options.positions.shape[0] > 1:
        position_batch = options.positions.stride(0)
    given = [
        q if extra is None else extra for extra in (options.slopes, options.positions, options.sinks, options.mask)
    ]
    slopes, positions, sinks, mask = given
    chosen = {
        "WIDTH": width, "PADDED": padded[0], "ROWS": side, "COLUMNS": side, "CAPPED": bool(options.soft_cap),
        "ALIBI": options.slopes is not None, "MASKED": options.mask is not None, "PRECISION": precision(q),
    }  # fmt: skip
    # One axis of programs: of a second there may be only 65535, fewer than heads of a large batch.
    with torch.cuda.device_of(q):
        _log_sums_kernel[(triton.cdiv(n, side) * batch * heads,)](
            q, k, sums, slopes, positions, sinks, mask, heads, n, m, heads // kv_heads, *q.stride()[:3],
            *k.stride()[:3], position_batch, *mask_strides, options.scale, options.soft_cap,
            SUNK=options.sinks is not None, **chosen,
        )  # fmt: skip
        _values_kernel[(triton.cdiv(m, side) * batch * kv_heads,)](
            q, k, dy, sums, dv, slopes, positions, mask, heads, n, m, heads // kv_heads, *q.stride()[:3],
            *k.stride()[:3], *dy.stride()[:3], position_batch, *mask_strides, options.scale, options.soft_cap,
            VALUES=values, PADDED_VALUES=padded[1], **chosen,
        )  # fmt: skip
    return dv
