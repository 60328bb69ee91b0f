"""Linear maps of the auxiliary dialect: layers, and the language-model head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Pulled, affine
from tintc.ir.core import register
from tintc.ir.losses import LogitMap

LINEAR_GROUPS = (
    ("value", "values"),
    ("output", "out"),
    ("ffn", "ffn"),
    ("lora", "lora"),
    ("query", "queries"),
    ("key", "keys"),
    ("router", "router"),
    ("projection", "outside"),
)
"""Roles of linear layers, and the groups to which their parameters belong."""


@register("aux.linear")
@dataclass(eq=False, kw_only=True)
class Linear(AuxOp):
    """y = W x + b with ``W [dout, din]``, b optional (empty name).

    Roles: query, key, value, output, ffn, router, lora (in a layer; lora is an adapter's, unless it makes queries or
    keys alone), projection (outside the layers). The paper updates all but query and key; a router too descends only
    where routing is differentiated.
    """

    GROUPS: ClassVar[Mapping[str, Mapping[str, str]]] = {
        role: dict.fromkeys(("weight", "bias"), group) for role, group in LINEAR_GROUPS
    }

    weight: str
    bias: str = ""

    def verify(self) -> None:
        (x,) = self.operands
        self.expect(x.type.kind == "tokens" and self.result.type.kind == "tokens", f"acts on tokens, not {x.type}")

    def evaluate(self, context: Context, x: Tensor) -> Tensor:
        return affine(x, context.parameter(self.weight), context.optional(self.bias))

    def pullback(self, context: Context, dy: Tensor, x: Tensor) -> Pulled:
        """Return dx = W^T dy, and over train tokens dW = sum dy x^T, db = sum dy (Defs. D.2, D.3)."""
        summed = dy * context.train
        gradients = {self.weight: summed.transpose(-1, -2) @ x}
        if self.bias:
            gradients[self.bias] = summed.sum(1)
        return (dy @ context.parameter(self.weight),), gradients


@register("aux.logits")
@dataclass(eq=False, kw_only=True)
class Logits(AuxOp):
    """The language-model head: z = scale (E x + b) over the vocabulary, ``E [V, D]``, and ``c tanh(z / c)`` where a
    soft cap c is given. Never updated."""

    weight: str
    bias: str = ""
    scale: float = 1.0
    softcap: float = 0.0

    @property
    def logit_map(self) -> LogitMap:
        return LogitMap(self.scale, self.softcap)

    def verify(self) -> None:
        (x,) = self.operands
        self.expect(x.type.kind == "tokens" and self.result.type.kind == "logits", "maps tokens to logits")
        self.expect(self.softcap >= 0, f"the soft cap is {self.softcap}, it must be positive, or 0 for none")

    def evaluate(self, context: Context, x: Tensor) -> Tensor:
        scores = affine(x, context.parameter(self.weight), context.optional(self.bias))
        return self.logit_map(scores)
