"""Kinds of mixers: functions with the arguments that libraries of kernels give them, made of `recurrence` and
`convolution`.

Arguments stand in the order in which flash-linear-attention, mamba-ssm and causal-conv1d have them, and so have
transformers' stand-ins for these. What a kind does not know, such as the size of a chunk, changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.activations import ACT2FN

from tintc.errors import ModelError
from tintc.frontend.mixers.ops import convolution, recurrence

UNIT_EPS = 1e-6
"""What is added to the squared length of queries and keys before they are divided by its root."""


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *_: Any,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Return ``[B, T, H, d_v]``, and no state: q, k ``[B, T, H_k, d_k]``, v ``[B, T, H, d_v]``, beta ``[B, T, H]``, log
    decays g ``[B, T, H]``, or ``[B, T, H, d_k]`` of every coordinate."""
    _expect_none("an initial state", initial_state)
    factor: float = q.shape[-1] ** -0.5
    if scale is not None:
        factor = scale
    unit_eps = 0.0
    if use_qk_l2norm_in_kernel:
        unit_eps = UNIT_EPS
    return recurrence(q, k, v, g, beta, scale=factor, delta=True, unit_eps=unit_eps), None


def state_space(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *_: Any,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    **unused: Any,
) -> Tensor:
    """Return Mamba 2's ``[B, T, H, P]``: x ``[B, T, H, P]``, dt ``[B, T, H]``, A and D ``[H]``, B and C ``[B, T, G,
    N]``."""
    _expect_none("an initial state", initial_states)
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        dt = F.softplus(dt)
    low, high = dt_limit
    if low > 0 or not dt_softplus:
        dt = dt.clamp(min=low)
    if high < math.inf:
        dt = dt.clamp(max=high)
    y = recurrence(C, B, x, A * dt, dt, skip=D)
    if z is None:
        return y
    return y * F.silu(z)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    **unused: Any,
) -> Tensor:
    """Return Mamba's ``[B, C, T]``: u, delta and z ``[B, C, T]``, A ``[C, N]``, B and C ``[B, N, T]`` or ``[B, G, N,
    T]``, D ``[C]``."""
    dt = delta.transpose(1, 2)
    if delta_bias is not None:
        dt = dt + delta_bias
    if delta_softplus:
        dt = F.softplus(dt)
    keys, queries = (_by_token(value) for value in (B, C))
    values = u.transpose(1, 2).unsqueeze(-1)
    y = recurrence(queries, keys, values, dt.unsqueeze(-1) * A, dt, skip=D).squeeze(-1)
    if z is not None:
        y = y * F.silu(z.transpose(1, 2))
    return y.transpose(1, 2)


def short_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **unused: Any
) -> Tensor:
    """Return ``[B, C, T]`` for x ``[B, C, T]`` and weight ``[C, w]``."""
    y = convolution(x.transpose(1, 2), weight, bias)
    if activation is not None:
        y = ACT2FN[activation](y)
    return y.transpose(1, 2)


KINDS: dict[str, Callable[..., Any]] = {
    "gated_delta_rule": gated_delta_rule,
    "kda": gated_delta_rule,
    "state_space": state_space,
    "selective_scan": selective_scan,
    "convolution": short_convolution,
}
"""By the names that `tintc.mixers.register` takes."""


def _by_token(value: Tensor) -> Tensor:
    """Return ``[B, N, T]`` or ``[B, G, N, T]`` as ``[B, T, G, N]``."""
    if value.dim() == 3:
        value = value.unsqueeze(1)
    return value.permute(0, 3, 1, 2)


def _expect_none(what: str, value: Tensor | None) -> None:
    if value is not None:
        raise ModelError(f"A mixer begins with {what}, and a simulator's with zeros; leave it out.")
