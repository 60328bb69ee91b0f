"""Mixtures of experts: a router's weights, and linear layers of which every token uses those of its own experts.

A mixture is ``y_t = sum_e r_te W2_e act(W1_e x_t)`` (construction.md, section 15). Between its two sums stand *routed*
values, one vector for every token and every expert that it has chosen::

    %r = aux.route(%z)             weights, zero where an expert is not chosen
    %x = aux.spread(%r, %tokens)   a token's vector, for each of its experts
    %h = aux.experts(%r, %x)       each expert's own linear layer; then activations and gates, as anywhere
    %y = aux.combine(%r, %h)       the weighted sum over a token's experts

Here they are ``[B, T, E, width]`` and zero where the expert is not chosen. The choice and its weights count as
constants of the backward pass, as attention's scores do, so that every expert is a set of ordinary linear layers. The
full gradient reaches the weights, and through them the router; the choice is a constant there too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Pulled
from tintc.ir.core import register
from tintc.ir.routed import (
    apply_experts,
    apply_experts_transposed,
    check_routed,
    expert_gradients,
    factors,
    weights_gradient,
)
from tintc.ir.router import RouterOptions, routing_gradient, routing_weights


@register("aux.route")
@dataclass(eq=False, kw_only=True)
class Route(RouterOptions, AuxOp):
    """(z) -> r, ``[B, T, E]``: the weights of a token's experts from a router's logits, zero for all other experts."""

    def parameters(self) -> dict[str, str]:
        return self.vectors()

    def evaluate(self, context: Context, z: Tensor) -> Tensor:
        return routing_weights(self, z, self._tables(context))

    def pullback(self, context: Context, dy: Tensor, z: Tensor) -> Pulled:
        """Return dz, the choice of experts held constant; only the full gradient hands one on to the weights."""
        return (routing_gradient(self, z, dy, self._tables(context)),), {}

    def _tables(self, context: Context) -> dict[str, Tensor]:
        return {key: context.parameter(name) for key, name in self.vectors().items()}


@register("aux.spread")
@dataclass(eq=False, kw_only=True)
class Spread(AuxOp):
    """(r, x) -> x_t for every expert that token t has chosen; with `weighted`, ``r_te x_t``."""

    weighted: bool = False

    def verify(self) -> None:
        self.expect(len(self.operands) == 2, "takes the routing and x")
        check_routed(self, self.operands[0], self.result)
        x = self.operands[1].type
        self.expect(x.kind == "tokens" and x.width == self.result.type.width, f"spreads {x} to {self.result.type}")

    def evaluate(self, context: Context, r: Tensor, x: Tensor) -> Tensor:
        return factors(r, self.weighted) * x[..., None, :]

    def pullback(self, context: Context, dy: Tensor, r: Tensor, x: Tensor) -> Pulled:
        """Return ``dx = sum_e dy_e`` over a token's experts, weighted as x was; and ``dr_te = <x_t, dy_te>``, if the
        full gradient is asked for and x is weighted."""
        dr = None
        if context.full and self.weighted:
            dr = weights_gradient(r, x, dy)
        return (dr, (factors(r, self.weighted) * dy).sum(-2)), {}


@register("aux.combine")
@dataclass(eq=False, kw_only=True)
class Combine(AuxOp):
    """(r, y) -> ``sum_e r_te y_te``; without `weighted`, the plain sum over the experts that token t has chosen."""

    weighted: bool = True

    def verify(self) -> None:
        self.expect(len(self.operands) == 2, "takes the routing and y")
        check_routed(self, *self.operands)
        y = self.operands[1].type
        same = self.result.type.kind == "tokens" and y.width == self.result.type.width
        self.expect(same, f"combines {y} to {self.result.type}")

    def evaluate(self, context: Context, r: Tensor, y: Tensor) -> Tensor:
        return (factors(r, self.weighted) * y).sum(-2)

    def pullback(self, context: Context, dy: Tensor, r: Tensor, y: Tensor) -> Pulled:
        """Return ``dy_e = r_te dy_t``: nothing for experts that are not chosen; and ``dr_te = <dy_t, y_te>``, if the
        full gradient is asked for and the sum is weighted."""
        dr = None
        if context.full and self.weighted:
            dr = weights_gradient(r, dy, y)
        return (dr, factors(r, self.weighted) * dy[..., None, :]), {}


@register("aux.experts")
@dataclass(eq=False, kw_only=True)
class Experts(AuxOp):
    """(r, x) -> ``W_e x_te + b_e`` for every expert e that token t has chosen; ``W [E, dout, din]``, ``b [E, dout]`` or
    none. The layers of all experts descend with the group of feed-forward layers."""

    GROUPS: ClassVar[Mapping[str, Mapping[str, str]]] = {"ffn": dict.fromkeys(("weight", "bias"), "ffn")}

    weight: str
    bias: str = ""

    def verify(self) -> None:
        self.expect(len(self.operands) == 2, "takes the routing and x")
        check_routed(self, *self.operands)
        check_routed(self, self.operands[0], self.result)

    def evaluate(self, context: Context, r: Tensor, x: Tensor) -> Tensor:
        return apply_experts(context.parameter(self.weight), context.optional(self.bias), r, x)

    def pullback(self, context: Context, dy: Tensor, r: Tensor, x: Tensor) -> Pulled:
        """Return ``dx_e = W_e^T dy_e``, and over train tokens ``dW_e = sum dy_e x_e^T``, ``db_e = sum dy_e``."""
        weight, bias = expert_gradients(dy, x, context.train)
        gradients = {self.weight: weight}
        if self.bias:
            gradients[self.bias] = bias
        return (None, apply_experts_transposed(context.parameter(self.weight), r, dy)), gradients
