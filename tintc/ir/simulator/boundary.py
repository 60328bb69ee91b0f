"""Where a program meets its tensors: `sim.embedding`, `sim.position_embedding`, `sim.weights`, `sim.logits`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.ir.auxiliary.base import affine
from tintc.ir.core import register
from tintc.ir.inputs import Inputs
from tintc.ir.simulator.base import Interpretation, LiteralRun, PrefixTiles, SimOp, Tiles, Weights
from tintc.ir.simulator.fused_base import FusedRun, FusedWeights, aligned_scores
from tintc.ir.simulator.linear_common import copies_of_bias


@register("sim.embedding")
@dataclass(eq=False, kw_only=True)
class Embedding(SimOp):
    """Row `input_ids` of ``tables.<table> [V, D]``."""

    table: str

    def verify(self) -> None:
        self.expect(not self.operands and self.result.type.kind == "tokens", "takes no operand and gives tokens")

    def rows(self, inputs: Inputs) -> Tensor:
        return inputs.input_ids

    def interpret(self, run: Interpretation, *operands: Tensor) -> Tensor:
        return run.tensors[f"tables.{self.table}"][self.rows(run.inputs)]

    def literal(self, run: LiteralRun, *operands: Tiles) -> Tiles:
        return [run.look_up(self.table, self.rows(run.inputs))]

    def fused(self, run: FusedRun, *operands: Tensor) -> Tensor:
        return F.embedding(self.rows(run.inputs)[:, : run.length(self)], run.table(self.table))


@register("sim.position_embedding")
@dataclass(eq=False, kw_only=True)
class PositionEmbedding(Embedding):
    """Row ``position_ids + offset`` of ``tables.<table> [P, D]``."""

    offset: int = 0

    def rows(self, inputs: Inputs) -> Tensor:
        return inputs.position_ids + self.offset


@register("sim.weights")
@dataclass(eq=False, kw_only=True)
class StoredWeights(SimOp):
    """The auxiliary's weights as a value: ``prefixes.<name>``, before any update.

    Stored: ``weight [ceil(dout/S), S, din]`` (stacked rows), ``bias [dout]`` of a linear layer; ``gain [D]``,
    ``bias [D]`` of a norm. `tiles` (added by planning): row and column tiles.
    """

    name: str
    tiles: tuple[int, int] = (0, 0)

    def verify(self) -> None:
        kind = self.result.type
        self.expect(not self.operands and kind.kind in ("linear", "norm"), "takes no operand and gives weights")

    def interpret(self, run: Interpretation, *operands: Tensor) -> Weights:
        kind, prefix = self.result.type, f"prefixes.{self.name}"
        bias = run.tensors.get(f"{prefix}.bias")
        if kind.kind == "norm":
            return Weights(run.tensors.get(f"{prefix}.gain"), bias)
        stacked = run.tensors[f"{prefix}.weight"]
        return Weights(stacked.flatten(0, 1)[: kind.dims[0]], bias)

    def literal(self, run: LiteralRun, *operands: Tiles) -> PrefixTiles:
        return run.weights(self.name)

    def fused(self, run: FusedRun, *operands: Tensor) -> FusedWeights:
        """Views of what is stored; a layer's stacked rows are its matrix, up to the rows that fill the last prefix."""
        parts = run.stored(self.name)
        stacked = parts.get("weight")
        weight = parts.get("gain") if stacked is None else stacked.flatten(0, 1)[: self.result.type.dims[0]]
        return FusedWeights(weight, parts.get("bias"))

    @property
    def bias_copies(self) -> int:
        return copies_of_bias(self.result.type)


@register("sim.logits")
@dataclass(eq=False, kw_only=True)
class Logits(SimOp):
    """z = E x + b with ``tables.<head> [V, D]`` and, if named, ``tables.<bias> [V]``."""

    head: str
    bias: str = ""

    def verify(self) -> None:
        self.expect(len(self.operands) == 1 and self.result.type.kind == "logits", "maps tokens to logits")

    def interpret(self, run: Interpretation, *operands: Tensor) -> Tensor:
        bias = run.tensors[f"tables.{self.bias}"] if self.bias else None
        return affine(operands[0], run.tensors[f"tables.{self.head}"], bias)

    def literal(self, run: LiteralRun, *operands: Tiles) -> Tensor:
        return run.logits(operands[0][0], self.head, self.bias)

    def fused(self, run: FusedRun, *operands: Tensor) -> Tensor:
        (x,), head, bias = operands, run.table(self.head), run.table(self.bias) if self.bias else None
        if torch.is_grad_enabled():
            return F.linear(x, head, bias)
        return aligned_scores(x.flatten(0, 1), head, bias)[0].unflatten(0, x.shape[:2])
