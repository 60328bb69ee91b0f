"""Shared by the fused forms of the ops: token values as plain tensors, weights with pending updates.

Fused execution runs the program by its algebra (construction.md, section 13). Token values are ``[B, n, width]``, where
n is the part of the text that the plan keeps; layout attributes are ignored. An update of a linear layer is either
carried out (*materialised*: per-example weights) or kept as the pair dY, X that defines it (*lazy*)::

    x W'^T + b' = x W^T + b + (x X^T + 1) dY'          dY' = -eta dY, over the train tokens
    dy W'       = dy W + (dy dY'^T) X
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.ir.core import Value
from tintc.ir.functions import ACTIVATIONS, at_least_fp32
from tintc.ir.inputs import Inputs

if TYPE_CHECKING:
    from tintc.ir.simulator.interface.base import SimOp


@dataclass(frozen=True)
class Pending:
    """A lazy update: ``dy [B, t, dout]``, zero where nothing is trained, ``x [B, t, din]``; `source` names x in the
    program. rate: minus the learning rate, if it is not multiplied into dy already (then 1).

    bias: how many times the bias receives the step (0 without bias; m in the authors' layout).
    """

    dy: Tensor
    x: Tensor
    source: Value
    bias: int
    rate: float = 1.0


@dataclass(frozen=True)
class FusedWeights:
    """Weights of a linear layer (``weight [dout, din]``, or ``[B, dout, din]`` once materialised) or norm (gain in
    `weight`), and updates not carried out yet."""

    weight: Tensor | None
    bias: Tensor | None
    pending: tuple[Pending, ...] = ()
    owned: bool = False


class FusedRun(Protocol):
    """Everything that the fused form of an op may read (implemented by the runtime)."""

    inputs: Inputs

    def table(self, name: str) -> Tensor: ...

    def stored(self, name: str) -> Mapping[str, Tensor]:
        """Return the stored tensors of a layer by part, as `sim.weights` describes them."""
        ...

    def rate(self, name: str, step: int) -> Tensor | float:
        """Return the learning rate: a number if all examples share it and nobody asks for its gradient, else ``[]`` or
        ``[B]``."""
        ...

    def here(self, op: SimOp) -> slice:
        """Return the positions of the text at which this run computes the op's results."""
        ...

    def lazy(self, op: SimOp) -> bool:
        """Return True if the plan leaves this descent pending."""
        ...

    def frees(self, op: SimOp, value: Value) -> bool:
        """Return True if nothing needs `value` once `op` has read it, so that `op` may write over it.

        Fused forms return memory of their own, or that of such a value.
        """
        ...

    def scores(self, x: Tensor, source: Value, pending: Pending) -> Tensor:
        """Return ``x X^T [B, n, t]``, computed once for all layers that share x and X."""
        ...

    def shared(self, op: SimOp, x: Tensor) -> Tensor | None:
        """Return ``W x + b`` of stored weights, as a part of one product for all ops that share x.

        None: the op is to take its product alone.
        """
        ...

    def apply_rotary(self, heads: Tensor, inv_freq: str, style: str, start: int = 0) -> Tensor:
        """Return heads ``[B, H, n, d]`` of the tokens from `start` on, rotated by their positions.

        They are the heads themselves if `inv_freq` is empty.
        """
        ...

    def score_vector(self, name: str) -> Tensor:
        """Return a stored vector that attention reads besides its operands."""
        ...

    def allowed(self, queries: int, keys: int, window: int = 0) -> Tensor | None:
        """Return which of the first `keys` tokens the last `queries` of them see, ``[B, 1, n, m]`` bool: causal,
        windowed and masked. None if plain causal attention is all there is."""
        ...

    def alibi(self, slopes: tuple[float, ...], scores: Tensor, rows: slice) -> Tensor:
        """Return what ALiBi adds to the scores ``[B, H, n, m]`` of the queries at `rows` with the first m keys, in
        their shape."""
        ...

    def later(self, count: int) -> Tensor:
        """Return plain causal attention among `count` neighbouring positions as an addend of its scores:
        ``[count, count]``, -inf for keys after the query, else 0."""
        ...

    def train(self, length: int, step: int) -> Tensor | None:
        """Return the train mask of a step, ``[B, n, 1]`` in the model's dtype; None if every one of the first n tokens
        is trained on."""
        ...


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
"""Whether this build of PyTorch has it; the operator is the one that torch.compile uses."""
FEW = 512
"""Rows up to which oneDNN takes a product with more outputs than inputs, see `widening`."""


def widening(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x weight^T + bias``, by oneDNN for fp32 on a CPU if the weight is higher than wide and x has few rows.

    PyTorch gives every fp32 product to MKL, whose share of the peak is lowest for these: on the machine of RESULTS.md
    128 rows times a vocabulary's head run at 36 against 60 thousand million multiply-adds per second, 256 rows at 38
    against 46, and a feed-forward layer's 128 rows at 34 against 44. From 1024 rows on MKL is ahead.
    """
    few = x.shape[:-1].numel() <= FEW and weight.shape[0] > weight.shape[1]
    if not few or x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_grad_enabled() or not ONEDNN:
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


def apply_linear(run: FusedRun, w: FusedWeights, x: Tensor, source: Value, shared: Tensor | None = None) -> Tensor:
    """Return y = W x + b, pending updates included. shared: the same without them, if it is known."""
    y = _plain_linear(w, x) if shared is None else shared
    for pending in w.pending:
        scores = run.scores(x, source, pending)
        scores = scores + pending.bias if pending.bias else scores
        y = _add_product(y, scores, pending.dy, pending.rate)
    return y


def _plain_linear(w: FusedWeights, x: Tensor) -> Tensor:
    """Return W x + b without pending updates."""
    assert w.weight is not None
    if w.weight.dim() == 2:
        bias = w.bias if w.bias is None or w.bias.dim() == 1 else None
        y = widening(x, w.weight, bias)
        return y if w.bias is None or bias is not None else y + w.bias[:, None]
    weight = w.weight.transpose(1, 2)
    return torch.bmm(x, weight) if w.bias is None else torch.baddbmm(_rows(w.bias), x, weight)


def _rows(bias: Tensor) -> Tensor:
    """Return a bias ``[dout]`` or ``[B, dout]`` in the shape that adds to ``[B, n, dout]``."""
    return bias[None, None] if bias.dim() == 1 else bias[:, None]


def apply_transposed(w: FusedWeights, dy: Tensor) -> Tensor:
    """Return dx = W^T dy, pending updates included."""
    assert w.weight is not None
    dx = dy @ w.weight
    for pending in w.pending:
        dx = _add_product(dx, dy @ pending.dy.transpose(1, 2), pending.x, pending.rate)
    return dx


def _add_product(y: Tensor, a: Tensor, b: Tensor, factor: float) -> Tensor:
    """Return ``y + factor a b`` by example, written over y unless autograd records it."""
    add = partial(torch.baddbmm, y) if torch.is_grad_enabled() else y.baddbmm_
    return add(a, b, alpha=factor)


TINY = 1e-30
"""Gradients smaller than this are stepped as if they were this large, which leaves a zero gradient zero."""


def rms(x: Tensor) -> Tensor:
    """Return the root mean square over the last dimension, in one pass: ``[..., D] -> [..., 1]``."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5


def step_size(eps: float, size: Tensor) -> Tensor:
    """Return eps / rms(g), per token. size: rms(g)."""
    return eps / size.clamp(min=TINY)


def fused_slope(fn: str, scheme: str, eps: float, g: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
    """Return act'(x) * g to first order, computed in fp32 or better, in the dtype of x.

    y: act(x), if it is known; used if it has that precision.
    """
    g, wide, recorded = at_least_fp32(g), at_least_fp32(x), torch.is_grad_enabled()
    y = activate(fn, wide) if y is None or y.dtype != wide.dtype else y
    h = g.new_tensor(eps) if scheme != "token" else step_size(eps, rms(g))
    stepped = activate(fn, torch.addcmul(wide, g, h), overwrite=not recorded)
    if recorded:
        return ((stepped - y) * h.reciprocal()).to(x.dtype)
    return stepped.sub_(y).mul_(h.reciprocal()).to(x.dtype)
