"""Ops of the auxiliary dialect that look rows of a table up: embeddings by token, by position, and constants."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Pulled
from tintc.ir.core import register


@register("aux.embedding")
@dataclass(eq=False, kw_only=True)
class Embedding(AuxOp):
    """Row `input_ids` of `table [V, D]`. Never updated."""

    table: str

    def verify(self) -> None:
        self.expect(not self.operands and self.result.type.kind == "tokens", "takes no operand and gives tokens")

    def evaluate(self, context: Context) -> Tensor:
        return context.parameter(self.table)[context.inputs.input_ids]

    def pullback(self, context: Context, dy: Tensor) -> Pulled:
        return (), {}


@register("aux.position_embedding")
@dataclass(eq=False, kw_only=True)
class PositionEmbedding(Embedding):
    """Row `position_ids + offset` of `table [P, D]`. Never updated."""

    offset: int = 0

    def evaluate(self, context: Context) -> Tensor:
        return context.parameter(self.table)[context.inputs.position_ids + self.offset]


@register("aux.constant")
@dataclass(eq=False, kw_only=True)
class Constant(Embedding):
    """The one row of `table [1, D]`: a position embedding whose rows are all alike. Never updated."""

    def evaluate(self, context: Context) -> Tensor:
        return context.parameter(self.table)[torch.zeros_like(context.inputs.input_ids)]
