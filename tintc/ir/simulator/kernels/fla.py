"""Recurrences by the kernels of flash-linear-attention, where it is installed.

Its functions take ``[B, T, heads, width]`` with a query/key head for every value head, and log decays; their state
decays before a token writes and reads, as ours does. Their plain twins are `apply_recurrence` of `tintc.ir.recurrence`
and its transpose.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.ir.recurrence import Heads, RecurrenceOptions
from tintc.ir.simulator.kernels.choice import chosen

FUNCTIONS = {
    (True, False): ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule"),
    (True, True): ("fla.ops.kda", "chunk_kda"),
    (False, False): ("fla.ops.simple_gla", "chunk_simple_gla"),
    (False, True): ("fla.ops.gla", "chunk_gla"),
}
"""Where the function is, by whether there is a delta rule, and whether every coordinate decays by itself."""


def takes(options: RecurrenceOptions, v: Tensor) -> bool:
    """Return whether its kernels run for a recurrence of these values; the transpose of a delta rule needs autograd."""
    return options.writes == 1 and not torch.is_inference_mode_enabled() and chosen("recurrence", v)


def recurrence(options: RecurrenceOptions, heads: Heads, v: Tensor) -> Tensor:
    """Return ``A v``, ``[B, H, T, d_v]``, without the option `skip`."""
    return _run(options, heads.q, heads.k, heads.g, heads.beta, v)


def transposed_recurrence(options: RecurrenceOptions, heads: Heads, dy: Tensor) -> Tensor:
    """Return ``A^T dy``, ``[B, H, T, d_v]``, without the option `skip`.

    Without a delta rule that is a recurrence from the last token on, in which keys ask and queries answer: between two
    tokens the same decays lie, those of the later one. With one, it is what autograd makes of A's values, in which A is
    linear.
    """
    if options.delta:
        with torch.enable_grad():
            values = torch.zeros_like(dy).requires_grad_()
            return torch.autograd.grad(recurrence(options, heads, values), values, dy)[0]
    decays = F.pad(heads.g[:, :, 1:], (0, 0, 0, 1)).flip(2)
    ones = torch.ones_like(heads.beta)
    backwards = _run(options, heads.k.flip(2), heads.q.flip(2), decays, ones, dy.flip(2))
    return backwards.flip(2) * heads.beta


def _run(options: RecurrenceOptions, q: Tensor, k: Tensor, g: Tensor, beta: Tensor, v: Tensor) -> Tensor:
    shared = options.n_heads // options.n_key_heads
    queries, keys = (_by_token(x.repeat_interleave(shared, 1)) for x in (q, k))
    decays = _by_token(g).float()
    if not options.by_coordinate:
        decays = decays.squeeze(-1)
    function = _function(options)
    if options.delta:
        strengths = _by_token(beta).squeeze(-1)
        y, _ = function(queries, keys, _by_token(v), g=decays, beta=strengths, scale=1.0)
    else:
        y, _ = function(queries, keys, _by_token(v * beta), g=decays, scale=1.0)
    return y.transpose(1, 2)


def _function(options: RecurrenceOptions) -> Callable[..., Any]:
    module, name = FUNCTIONS[options.delta, options.by_coordinate]
    return getattr(importlib.import_module(module), name)


def _by_token(x: Tensor) -> Tensor:
    """Return ``[B, T, H, d]`` of ``[B, H, T, d]``."""
    return x.transpose(1, 2).contiguous()
