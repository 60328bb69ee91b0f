"""The arithmetic of fused forms: products with weights and their pending updates, activations, differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.ir.core import Value
from tintc.ir.functions import ACTIVATIONS, KINKED, FiniteDifference, at_least_fp32
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.kernels.choice import chosen
from tintc.ir.simulator.kernels.rows import TINY, has_kernel

IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "silu": partial(F.silu, inplace=True),
    "tanh": torch.tanh_,
}
"""Activations that PyTorch can write over their input."""


def activate(fn: str, x: Tensor, overwrite: bool = False) -> Tensor:
    """Return act(x), written over x where that is allowed and can be done.

    The tanh form of GELU is ``x sigmoid(2 u)``, since ``(1 + tanh u) / 2 = sigmoid(2 u)``: less than half the time of
    PyTorch's kernel on a CPU.
    """
    if overwrite and fn in IN_PLACE:
        return IN_PLACE[fn](x)
    if fn != "gelu_tanh" or torch.is_grad_enabled() or x.device.type != "cpu":
        return ACTIVATIONS[fn](x)
    slope = 2 * (2 / math.pi) ** 0.5
    inner = (x * x).mul_(0.044715 * slope).add_(slope).mul_(x)
    return inner.sigmoid_().mul_(x)


ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""True if this build of PyTorch has it; the operator is the one that torch.compile uses."""
FEWEST, FEW = 4, 512
"""Rows from which and up to which oneDNN takes a product with more outputs than inputs, see `widening`."""


def widening(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x weight^T + bias``, by oneDNN for fp32 on a CPU if the weight is higher than wide and x has few rows.

    PyTorch gives every fp32 product to MKL, whose share of the peak is lowest for these: on the machine of RESULTS.md
    128 rows times a vocabulary's head run at 36 against 60 thousand million multiply-adds per second, 256 rows at 38
    against 46, and a feed-forward layer's 128 rows at 34 against 44. From 1024 rows on MKL is ahead,
    and with fewer than 4 rows, where a product costs what reading its weights does (one row: by a tenth to a fifth).
    """
    few = FEWEST <= x.shape[:-1].numel() <= FEW and weight.shape[0] > weight.shape[1]
    if not few or x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_grad_enabled() or not ONEDNN:
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


def apply_linear(run: FusedRun, w: FusedWeights, x: Tensor, source: Value, shared: Tensor | None = None) -> Tensor:
    """Return y = W x + b, pending updates included. shared: the same without them, if it is known."""
    updates = w.pending
    y = shared
    if y is None and updates and w.weight is not None and chosen("two_products", x, w.weight, updates[0].dy):
        from tintc.ir.simulator.kernels.triton_products import two_products

        first, *updates = updates
        scores = run.scores(x, source, first)
        y = two_products(x, w.weight.transpose(-1, -2), w.bias, scores, first.dy, first.bias, first.rate)
    elif y is None:
        y = _plain_linear(w, x)
    for pending in updates:
        scores = run.scores(x, source, pending)
        if pending.bias:
            scores = scores + pending.bias
        y = _add_product(y, scores, pending.dy, pending.rate)
    return y


def _plain_linear(w: FusedWeights, x: Tensor) -> Tensor:
    """Return W x + b without pending updates."""
    assert w.weight is not None
    if w.weight.dim() == 2:
        if w.bias is None or w.bias.dim() == 1:
            return widening(x, w.weight, w.bias)
        return widening(x, w.weight) + _rows(w.bias)
    weight = w.weight.transpose(1, 2)
    if w.bias is None:
        return torch.bmm(x, weight)
    return torch.baddbmm(_rows(w.bias), x, weight)


def _rows(bias: Tensor) -> Tensor:
    """Return a bias ``[dout]`` or ``[B, dout]`` in the shape that adds to ``[B, n, dout]``."""
    if bias.dim() == 1:
        return bias[None, None]
    return bias[:, None]


def apply_transposed(w: FusedWeights, dy: Tensor) -> Tensor:
    """Return dx = W^T dy, pending updates included."""
    assert w.weight is not None
    updates = w.pending
    if updates and chosen("two_products", dy, w.weight, updates[0].x):
        from tintc.ir.simulator.kernels.triton_products import two_products

        first, *updates = updates
        dx = two_products(dy, w.weight, None, dy @ first.dy.transpose(1, 2), first.x, 0.0, first.rate)
    else:
        dx = dy @ w.weight
    for pending in updates:
        dx = _add_product(dx, dy @ pending.dy.transpose(1, 2), pending.x, pending.rate)
    return dx


def _add_product(y: Tensor, a: Tensor, b: Tensor, factor: float) -> Tensor:
    """Return ``y + factor a b`` by example, written over y unless autograd records it."""
    if torch.is_grad_enabled():
        return torch.baddbmm(y, a, b, alpha=factor)
    return y.baddbmm_(a, b, alpha=factor)


def rms(x: Tensor) -> Tensor:
    """Return the root mean square over the last dimension, in one pass: ``[..., D] -> [..., 1]``."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5


def step_size(eps: float, size: Tensor) -> Tensor:
    """Return eps / rms(g), per token. size: rms(g)."""
    return eps / size.clamp(min=TINY)


def fused_slope(fn: str, difference: FiniteDifference, g: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
    """Return act'(x) * g by a finite difference, computed in fp32 or better, in the dtype of x; exactly where the
    difference spares the activation.

    y: act(x), if it is known; used if it has that precision.
    """
    if difference.spares(fn):
        return (g * KINKED[fn](x)).to(x.dtype)
    difference = difference.for_activations()
    if chosen("activation_backward", g, x) and has_kernel(fn, x):
        from tintc.ir.simulator.kernels.triton_difference import activation_backward

        return activation_backward(fn, difference, g, x)
    g = at_least_fp32(g)
    wide = at_least_fp32(x)
    recorded = torch.is_grad_enabled()
    h = g.new_full((), difference.eps)
    if difference.per_token:
        h = step_size(difference.eps, rms(g))
    between = h
    if difference.central:
        y = activate(fn, torch.addcmul(wide, g, h, value=-1), overwrite=not recorded)
        between = 2 * h
    elif y is None or y.dtype != wide.dtype:
        y = activate(fn, wide)
    stepped = activate(fn, torch.addcmul(wide, g, h), overwrite=not recorded)
    if recorded:
        return ((stepped - y) * between.reciprocal()).to(x.dtype)
    return stepped.sub_(y).mul_(between.reciprocal()).to(x.dtype)


def fused_norm_slope(kind: str, eps: float, difference: FiniteDifference, g: Tensor, x: Tensor) -> Tensor:
    """Return ``(f(x + h g) - f(x)) / h`` of a norm f without gain and bias, or the central difference, from three sums
    per token, without the cancellation. kind: ``layer`` or ``rms``; eps: the norm's; g, x: ``[..., D]``.

    Let x have its mean taken off, s be the scale of f at x (x = s f), and s' that at x + h g. With m the mean of g
    and p / 2, q those of x g and (g - m)^2: ``s'^2 = s^2 + h p + h^2 q``, and f(x + h g) - f(x) is
    ``h (g - m) / s' + x (1/s' - 1/s)``, where ``1/s' - 1/s = -h (p + h q) / (s s' (s + s'))``. For RMSNorm, m = 0.
    Of a central one, let t be the scale at x - h g: f(x + h g) - f(x - h g) is
    ``h (g - m) (1/s' + 1/t) + x (1/s' - 1/t)``, and ``1/s' - 1/t = -2 h p / (s' t (s' + t))``. QED.
    """
    f, inverse = _normalised(kind, eps, x)
    s = inverse.reciprocal()
    size = rms(g)
    p = torch.linalg.vecdot(f, g)[..., None] * s * (2 / x.shape[-1])
    m = None
    if kind == "layer":
        m = g.mean(-1, keepdim=True)
    h: Tensor | float = difference.eps
    if difference.per_token:
        h = s * step_size(difference.eps, size)
    if difference.central:
        even = s.square() + (h * size).square()
        if m is not None:
            even = even - (h * m).square()
        ahead = (even + h * p).rsqrt()
        behind = (even - h * p).rsqrt()
        weight = (ahead + behind) / 2
        rest = -p * ahead * behind / (ahead.reciprocal() + behind.reciprocal()) * s
        return torch.addcmul(_centred(g, m, weight), f, rest)
    q = size.square()
    if m is not None:
        q = q - m.square()
    change = p + h * q
    # 1 / s', the inverse scale at x + h g.
    stepped = (s.square() + h * change).rsqrt()
    return torch.addcmul(_centred(g, m, stepped), f, -change * stepped / (s + stepped.reciprocal()))


def _centred(g: Tensor, m: Tensor | None, weight: Tensor) -> Tensor:
    """Return ``(g - m) weight``."""
    if m is None:
        return g * weight
    return torch.addcmul(-m * weight, g, weight)


def _normalised(kind: str, eps: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(x) ``[..., D]`` and 1/s ``[..., 1]``. The kernel that has both gives no gradient through 1/s, so
    autograd's runs do without it."""
    if kind == "layer" and not torch.is_grad_enabled():
        f, _, inverse = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        return f, inverse
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    inverse = (rms(x).square() + eps).rsqrt()
    return x * inverse, inverse
