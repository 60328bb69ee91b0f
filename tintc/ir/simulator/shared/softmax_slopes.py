"""The derivative of a softmax along a direction, as fused execution takes it: the difference without its cancellation.

Let P be a row of probabilities, beside a sink or not, and ``x = h (c - <P, c>)``; a shift of all scores changes no
softmax, so that the probabilities at ``s + h c`` are ``P e^x / Z`` with ``Z = sum P e^x``, where the sum runs over the
sink too, whose c is 0. With ``C = sum P cosh x`` and ``S = sum P sinh x``, Z at plus and minus h is ``C + S`` and
``C - S``, and::

    (P(s + h c) - P(s)) / h         = P (expm1(x) - sum P expm1(x)) / (h Z)
    (P(s + h c) - P(s - h c)) / 2h  = P (C sinh x - S cosh x) / (h (C^2 - S^2))

Both hold exactly. What is subtracted is small itself, so that little is lost to rounding in any type. QED.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tintc.ir.functions import FiniteDifference
from tintc.ir.simulator.interface.fused_kernels import TINY


def softmax_slopes(difference: FiniteDifference, weights: Tensor, c: Tensor, beside: bool) -> Tensor:
    """Return the difference of probabilities ``weights [..., n, m]`` along ``c [..., n, m]``, which is 0 for keys that
    are not seen. beside: whether there is a sink, which has the rest of the probability.

    The step is ``eps / |c|`` for each row; it is `eps` where it is fixed.
    """
    h: Tensor | float = difference.eps
    between: Tensor | float = 1 / difference.eps
    if difference.per_token:
        size = torch.linalg.vector_norm(c, dim=-1, keepdim=True).clamp(min=TINY)
        h = difference.eps / size
        between = size / difference.eps
    mean = _sum(weights, c)
    x = (c - mean) * h
    rest = 1 - weights.sum(-1, keepdim=True) if beside else None
    at_sink = -mean * h
    if not difference.central:
        grown = torch.expm1(x)
        total = _sum(weights, grown)
        if rest is not None:
            total = total + rest * torch.expm1(at_sink)
        return weights * (grown - total) * (between / (1 + total))
    odd = torch.sinh(x)
    even = _cosh_less_one(odd)
    odd_sum = _sum(weights, odd)
    even_sum = 1 + _sum(weights, even)
    if rest is not None:
        odd_at_sink = torch.sinh(at_sink)
        odd_sum = odd_sum + rest * odd_at_sink
        even_sum = even_sum + rest * _cosh_less_one(odd_at_sink)
    factor = between / (even_sum.square() - odd_sum.square())
    return weights * torch.addcmul(odd * (even_sum * factor) - odd_sum * factor, even, -odd_sum * factor)


def _sum(weights: Tensor, values: Tensor) -> Tensor:
    """Return ``<P, values>`` of every row: ``[..., n, 1]``."""
    return torch.linalg.vecdot(weights, values)[..., None]


def _cosh_less_one(odd: Tensor) -> Tensor:
    """Return ``cosh x - 1`` from sinh x, without the cancellation."""
    square = odd.square()
    return square / (1 + (1 + square).sqrt())
