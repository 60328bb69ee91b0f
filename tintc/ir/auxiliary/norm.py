"""`aux.norm`: LayerNorm and RMSNorm, with or without gain and bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Gradients, Pulled
from tintc.ir.core import register
from tintc.ir.functions import norm_scale, normalise, normalise_groups


def per_token(vector: Tensor) -> Tensor:
    """Return ``[D]`` or per-example ``[B, D]``, ready to broadcast over ``[B, T, D]``."""
    if vector.dim() == 2:
        return vector[:, None]
    return vector


def whole_vector(vector: Tensor, width: int) -> Tensor:
    """Return ``[groups, d]`` as ``[width]``; ``[d]``, which the groups share, once for each of them. What is each
    example's own, ``[B, groups, d]`` or ``[B, 1, d]``, becomes ``[B, 1, width]``."""
    if vector.dim() == 3:
        return vector.flatten(1).repeat(1, width // vector[0].numel())[:, None]
    return vector.reshape(-1).repeat(width // vector.numel())


@register("aux.norm")
@dataclass(eq=False, kw_only=True)
class Norm(AuxOp):
    """y = gamma * f(x) + beta (Defs. F.1, J.1); `weight` is gamma, `bias` is beta, each optional.

    groups: equal parts of x (heads), each normalised on its own; gamma and beta then have the shape ``[groups, d]``, or
    ``[d]`` if the parts share them, ``d = width / groups``.
    Roles: layer (inside a layer), qk, heads, final, embedding. Beta descends in layers and in the final norm (Def.
    F.5), gamma there if asked to, and so do both of norms of heads, and of the embeddings' norm.
    """

    GROUPS: ClassVar[Mapping[str, Mapping[str, str]]] = {
        **{role: {"weight": "norm-gain", "bias": "norm-bias"} for role in ("layer", "final")},
        **{role: dict.fromkeys(("weight", "bias"), "head-norm") for role in ("qk", "heads")},
        "embedding": dict.fromkeys(("weight", "bias"), "outside"),
    }

    kind: str
    eps: float
    weight: str = ""
    bias: str = ""
    groups: int = 1

    def verify(self) -> None:
        (x,) = self.operands
        self.expect(self.kind in ("layer", "rms"), f"kind {self.kind!r} is neither 'layer' nor 'rms'")
        self.expect(self.eps > 0, f"eps is {self.eps}, it must be positive")
        self.expect(x.type == self.result.type, f"types differ: {x.type} -> {self.result.type}")
        even = self.groups > 0 and x.type.width % self.groups == 0
        self.expect(even, f"{self.groups} groups do not divide {x.type}")

    def evaluate(self, context: Context, x: Tensor) -> Tensor:
        y = normalise_groups(self.kind, x, self.eps, self.groups)
        if self.weight:
            y = y * self._per_token(context.parameter(self.weight))
        if self.bias:
            y = y + self._per_token(context.parameter(self.bias))
        return y

    def _per_token(self, vector: Tensor) -> Tensor:
        """Return gain or bias ready to broadcast over ``[B, T, D]``."""
        if self.groups == 1:
            return per_token(vector)
        return whole_vector(vector, self.result.type.width)

    def pullback(self, context: Context, dy: Tensor, x: Tensor) -> Pulled:
        """Return dx to first order (Def. F.3): the Jacobian of f is symmetric, so J^T g is a difference of f along g =
        gamma dy."""
        g = dy
        if self.weight:
            g = dy * self._per_token(context.parameter(self.weight))
        x, g = (value.unflatten(-1, (self.groups, -1)) for value in (x, g))
        dx = context.difference.derivative(
            lambda z: normalise(self.kind, z, self.eps), x, g, norm_scale(self.kind, x, self.eps)
        ).flatten(-2)
        gradients: Gradients = {}
        if self.bias:
            gradients[self.bias] = self._summed(context, self.bias, dy)
        if self.weight:
            normed = normalise(self.kind, x, self.eps).flatten(-2)
            gradients[self.weight] = self._summed(context, self.weight, dy * normed)
        return (dx,), gradients

    def _summed(self, context: Context, name: str, gradient: Tensor) -> Tensor:
        """Return the sum over train tokens ``[B, D]``, by group where there are several; ``[B, 1, d]`` of all groups
        that share a parameter."""
        total = (gradient * context.train).sum(1)
        if self.groups == 1:
            return total
        total = total.unflatten(-1, (self.groups, -1))
        parameter = context.parameter(name)
        if parameter.dim() == 1 or parameter.shape[-2] == 1:
            return total.sum(1, keepdim=True)
        return total
