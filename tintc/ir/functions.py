"""The mathematics both dialects share: norms, activations, rotations, attention probabilities, finite differences.

Everything here is written for reading, works in the dtype it is given, and is what the interpreters call "right".
Formula numbers refer to the paper (arXiv 2307.01189); `eps` of a norm is the auxiliary's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x).square(),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "tanh": torch.tanh,
    "hardtanh": F.hardtanh,
    "at_most_one": lambda x: x.clamp(max=1),
    "negexp": lambda x: torch.expm1(x.clamp(max=0)) - x.clamp(max=0),
    "identity": torch.clone,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
}
"""Activations by the name the IR uses; their results are tensors of their own."""

GATES_ONLY = frozenset({"sigmoid", "softplus"})
"""Those that do not map 0 to 0. An embedding's zero pads must stay zero, so they may only multiply another value."""


KINKED: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: (x > 0).to(x.dtype),
    "relu2": lambda x: 2 * torch.relu(x),
    "hardtanh": lambda x: (F.hardtanh(x) == x).to(x.dtype),
    "at_most_one": lambda x: (x <= 1).to(x.dtype),
    "negexp": lambda x: torch.expm1(x.clamp(max=0)),
}
"""The slopes of activations that have a kink, or whose slope has one. A difference across a kink is off by up to the
gradient itself however small its step; central ones leave these activations out, since their slopes are as simple as
they are."""


def at_least_fp32(x: Tensor) -> Tensor:
    """Return x itself, or x in fp32 if its dtype is a shorter one."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def square_root(x: Tensor) -> Tensor:
    """Return the square root, with the derivative 0 at 0: a zero vector must not make autograd's gradients NaN."""
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x).sqrt())


def norm_scale(kind: str, x: Tensor, eps: float) -> Tensor:
    """Return sigma(x) of a LayerNorm or rms(x) of an RMSNorm, its `eps` included: ``[..., D] -> [..., 1]``."""
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    return square_root(x.square().mean(-1, keepdim=True) + eps)


def normalise(kind: str, x: Tensor, eps: float) -> Tensor:
    """Return f(x) = (x - mu) / sigma for ``layer``, x / rms(x) for ``rms`` (Defs. F.1, J.1), over the last
    dimension."""
    scale = norm_scale(kind, x, eps)
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    return x / scale


def normalise_groups(kind: str, x: Tensor, eps: float, groups: int) -> Tensor:
    """Return `normalise` of each of `groups` equal parts of the last dimension, each on its own."""
    return normalise(kind, x.unflatten(-1, (groups, -1)), eps).flatten(-2)


def rms(g: Tensor) -> Tensor:
    """Return the root mean square over the last dimension, kept: ``[..., D] -> [..., 1]``."""
    return square_root(g.square().mean(-1, keepdim=True))


@dataclass(frozen=True)
class FiniteDifference:
    """The choice of a first-order step (paper Defs. F.3, G.3; construction.md, section 6.1).

    ``fixed``: step `eps` everywhere, as in the paper. ``token``: step ``eps * c / rms(g)`` per token, which suits the
    gradient whatever its size; a zero gradient gives zero. ``central``: the same steps both ways, shorter ones for
    activations, and the exact slopes of activations that have kinks.
    """

    scheme: str
    eps: float

    @property
    def per_token(self) -> bool:
        """Return True if every token has a step of its own."""
        return self.scheme != "fixed"

    @property
    def central(self) -> bool:
        """Return True if steps are taken both ways."""
        return self.scheme == "central"

    def spares(self, fn: str) -> bool:
        """Return True if an activation's slope is taken as it is, exactly."""
        return self.central and fn in KINKED

    def for_activations(self) -> FiniteDifference:
        """Return the difference that is taken of activations: a third of the step where it goes both ways.

        Gradients are heavy-tailed over the coordinates of a feed-forward layer, and the error at each is of second
        order in its own part of the step; norms mix coordinates, so that only the whole step's length counts.
        """
        if self.central:
            return replace(self, eps=self.eps / 3)
        return self

    def of_activation(self, fn: str, x: Tensor, g: Tensor) -> Tensor:
        """Return ``act'(x) g``, by a difference or, where this `spares` the activation, exactly."""
        if self.spares(fn):
            return g * KINKED[fn](x)
        return self.for_activations().derivative(ACTIVATIONS[fn], x, g)

    def derivative(self, f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor, c: Tensor | float = 1.0) -> Tensor:
        """Return ``J_f(x) g``: to first order ``(f(x + h g) - f(x)) / h``, to second ``(f(x + h g) - f(x - h g)) / 2h``
        where steps go both ways. Shapes of x and g: ``[..., D]``."""
        if not self.per_token:
            return (f(x + self.eps * g) - f(x)) / self.eps
        size = rms(g)
        # Both branches of the last `where` are evaluated, so no division may be by zero even where its result is
        # dropped.
        safe = torch.where(size == 0, torch.ones_like(size), size)
        h = self.eps * c / safe
        if self.central:
            slope = (f(x + h * g) - f(x - h * g)) / (2 * h)
        else:
            slope = (f(x + h * g) - f(x)) / h
        return torch.where(size == 0, torch.zeros_like(g), slope)


def rotate(x: Tensor, positions: Tensor, inv_freq: Tensor, style: str) -> Tensor:
    """Return heads ``x [B, heads, T, d]`` with a rotary embedding at ``positions [B, T]``.

    The first ``2 * len(inv_freq)`` coordinates of a head turn in pairs: (i, i + n) for style ``half``, (2i, 2i + 1) for
    ``interleaved``; the rest stay.
    """
    n = inv_freq.shape[0]
    wide = torch.promote_types(x.dtype, torch.float32)  # bf16 cannot tell position 1000 from 1001
    angle = positions[:, None, :, None].to(wide) * inv_freq.to(wide)
    cos = angle.cos().to(x.dtype)
    sin = angle.sin().to(x.dtype)
    turned = x[..., : 2 * n]
    rest = x[..., 2 * n :]
    if style == "half":
        a = turned[..., :n]
        b = turned[..., n:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)
    a = turned[..., 0::2]
    b = turned[..., 1::2]
    pairs = torch.stack((a * cos - b * sin, b * cos + a * sin), -1)
    return torch.cat((pairs.flatten(-2), rest), -1)


def masked_softmax(scores: Tensor, allowed: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Return the softmax over the last dimension; a row with no allowed key gives zeros, not NaN.

    sinks ``[H]``: for each head of ``scores [B, H, n, m]`` the logit of one more entry, whose probability is dropped.
    """
    scores = scores.masked_fill(~allowed, -math.inf)
    top = scores.amax(-1, keepdim=True)
    sink = None if sinks is None else sinks.to(scores.dtype)[:, None, None]
    top = top if sink is None else torch.maximum(top, sink)
    # A row without any key has the maximum -inf, and -inf minus -inf is NaN.
    weights = torch.exp(scores - torch.where(torch.isinf(top), torch.zeros_like(top), top))
    total = weights.sum(-1, keepdim=True) + (0.0 if sink is None else torch.exp(sink - top))
    return weights / torch.where(total == 0, torch.ones_like(total), total)


def sink_softmax(scores: Tensor, sink: Tensor, rest: int) -> Tensor:
    """Return the softmax over the last dimension, beside one more entry and `rest` entries of logit 0, none of which is
    returned.

    ``scores [B, H, n, m]``, ``sink [H]``: logit of that entry for each head. The sink is not subtracted before the
    exponential: a small score would be rounded to the precision of a large logit.
    """
    # The `rest` entries have logit 0, so the maximum is at least that.
    top = scores.amax(-1, keepdim=True).clamp(min=0)
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True) + rest * torch.exp(-top)
    return weights / (total + torch.exp(sink.to(scores.dtype)[:, None, None] - top))


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """Return ``[B, n_heads, T, d]`` of ``[B, T, n_heads * d]``."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Return ``[B, T, heads * d]`` of ``[B, heads, T, d]``."""
    return x.transpose(1, 2).flatten(-2)


def causal_mask(length: int, device: torch.device, window: int = 0) -> Tensor:
    """Return ``[T, T]``, true where query t may see key j <= t; with a window, only the last `window` of these."""
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return seen.triu(1 - window) if window else seen


def alibi(slopes: Sequence[float], queries: Tensor, keys: Tensor, like: Tensor) -> Tensor:
    """Return ``slope_h * (position of the key - position of the query)``, ``[B, H, n, m]``, in the dtype of `like`.

    queries ``[B, n]``, keys ``[B, m]``: positions, as integers (bfloat16 does not tell positions 301 and 302 apart).
    """
    # One by one: a list would be copied from the host, for which a GPU's queue waits.
    steep = torch.stack([like.new_full((1, 1), slope) for slope in slopes])
    return steep * (keys[:, None, None, :] - queries[:, None, :, None]).to(like.dtype)


def soft_capped(scores: Tensor, cap: float) -> Tensor:
    """Return ``cap * tanh(scores / cap)``, or the scores if cap is 0."""
    return cap * torch.tanh(scores / cap) if cap else scores
