"""`recurrence` and `convolution`: two functions that are one node each in an exported graph.

While a graph is exported they are operations without a body, `tintc::recurrence` and `tintc::convolution`; `fill_in`
then gives their nodes targets that compute. Outside of an export they compute, in any dtype, differentiably.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.ir.functions import at_least_fp32, merge_heads
from tintc.ir.recurrence import Heads, RecurrenceOptions, apply_recurrence

RECURRENCE = (
    "(Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, Tensor? skip, float scale, bool delta, float unit_eps)"
    " -> Tensor"
)
CONVOLUTION = "(Tensor x, Tensor weight, Tensor? bias) -> Tensor"


def _shape_of_recurrence(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return v.new_empty((*v.shape[:3], v.shape[-1]))


def _shape_of_convolution(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


if not hasattr(torch.ops.tintc, "recurrence"):  # operators outlive a module that is imported anew
    torch.library.define("tintc::recurrence", RECURRENCE)
    torch.library.register_fake("tintc::recurrence", _shape_of_recurrence)
    torch.library.define("tintc::convolution", CONVOLUTION)
    torch.library.register_fake("tintc::convolution", _shape_of_convolution)


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    skip: Tensor | None = None,
    scale: float = 1.0,
    delta: bool = False,
    unit_eps: float = 0.0,
) -> Tensor:
    """Return ``A v`` per head, ``[B, T, H, d_v]``, for ``q, k [B, T, H_k, d_k]`` and ``v [B, T, H, d_v]``.

    g: log decays ``[B, T, H]``, or ``[B, T, H, d_k]`` of every coordinate of a key; beta: strengths ``[B, T, H]``;
    skip ``[H]``: how much of v a token adds to its own result; scale: of queries; delta: whether the delta rule
    subtracts what the state holds under a key already; unit_eps: above 0, queries and keys are divided by
    ``sqrt(|x|^2 + unit_eps)``. A is that of construction.md, section 16.

    A token may write n times before it reads, as in a product of n Householder matrices: k is then ``[B, T, H_k, n,
    d_k]``, v ``[B, T, H, n, d_v]`` and beta ``[B, T, H, n]``, without a skip. The state decays once a token.
    """
    arguments = (q, k, v, g, beta, skip, float(scale), bool(delta), float(unit_eps))
    if torch.compiler.is_exporting():
        return torch.ops.tintc.recurrence(*arguments)
    return recurrence_of_tokens(*arguments)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``sum_i w_ci x_(t-i)c + b_c``, ``[B, T, C]``, for ``x [B, T, C]`` and ``weight [C, w]``, whose last column
    is of the token itself."""
    if torch.compiler.is_exporting():
        return torch.ops.tintc.convolution(x, weight, bias)
    return convolution_of_tokens(x, weight, bias)


def recurrence_of_tokens(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    skip: Tensor | None,
    scale: float,
    delta: bool,
    unit_eps: float,
    real: Tensor | None = None,
) -> Tensor:
    """Compute what `recurrence` describes, in fp32 or better. real ``[B, T]``: tokens that are no padding (None: all);
    the others neither write nor decay."""
    options = RecurrenceOptions(
        operands=(),
        results=(),
        n_heads=v.shape[2],
        n_key_heads=k.shape[2],
        key_dim=k.shape[-1],
        value_dim=v.shape[-1],
        scale=scale,
        delta=delta,
        by_coordinate=g.dim() == 4,
        unit_eps=unit_eps,
        writes=writes_of(v.shape[2:]),
    )
    q, k, g, beta = (at_least_fp32(value).flatten(2) for value in (q, k, g, beta))
    heads = Heads.of(options, q, k, g, beta, real)
    y = apply_recurrence(options, heads, options.split_values(at_least_fp32(v).flatten(2)), skip)
    return merge_heads(y).unflatten(-1, (v.shape[2], v.shape[-1])).to(v.dtype)


def writes_of(sizes: Sequence[int]) -> int:
    """Return how often a token writes, from the sizes of its values: ``H, d_v`` or ``H, n, d_v``."""
    if len(sizes) == 2:
        return 1
    return sizes[1]


def convolution_of_tokens(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute what `convolution` describes, in the dtype of the weight."""
    rows = F.pad(x.to(weight.dtype).transpose(1, 2), (weight.shape[-1] - 1, 0))
    return F.conv1d(rows, weight[:, None], bias, groups=weight.shape[0]).transpose(1, 2).to(x.dtype)


def fill_in(graph: torch.fx.Graph) -> None:
    """Give every node of an exported graph that stands for one of the two functions a target that computes."""
    targets = {
        torch.ops.tintc.recurrence.default: recurrence_of_tokens,
        torch.ops.tintc.convolution.default: convolution_of_tokens,
    }
    for node in graph.nodes:
        if node.op == "call_function" and node.target in targets:
            node.target = targets[node.target]
