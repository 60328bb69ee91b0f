"""`sim.weights`: the auxiliary's weights, as prefixes store them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from tintc.ir.auxiliary.norm import whole_vector
from tintc.ir.core import Value, register
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.interface.literal_base import ExpertTiles, LiteralRun, PrefixTiles
from tintc.ir.simulator.interface.semantics import Interpretation, Weights
from tintc.ir.simulator.interface.storage import Storage
from tintc.ir.simulator.shared.linear_common import weight_tiles
from tintc.ir.structure import TensorSpec


def stack_rows(weight: Tensor, stack: int) -> Tensor:
    """Return ``[..., ceil(dout/S), S, din]`` of ``[..., dout, din]``: row ``k*S + s`` at ``[k, s]``, zeros beyond
    dout."""
    missing = -weight.shape[-2] % stack
    if missing:
        weight = F.pad(weight, (0, 0, 0, missing))
    return weight.unflatten(-2, (-1, stack))


def whole(vector: TensorSpec, width: int) -> TensorSpec:
    """Return a gain or bias as the ``[width]`` vector that it is for all heads together."""
    if vector.shape == (width,):
        return vector
    return TensorSpec((width,), lambda: whole_vector(vector.build(), width))


@register("sim.weights")
@dataclass(eq=False, kw_only=True)
class StoredWeights(SimOp):
    """The auxiliary's weights as a value: ``prefixes.<name>``, before any update.

    Stored: ``weight [ceil(dout/S), S, din]`` (stacked rows), ``bias [dout]`` of a linear layer, with the experts as one
    more dimension in front if there is one for each; ``gain [D]``, ``bias [D]`` of a norm. `tiles` (added by planning):
    row and column tiles.
    """

    name: str
    tiles: tuple[int, int] = (0, 0)

    def verify(self) -> None:
        kind = self.result.type
        self.expect(not self.operands and kind.is_weights, "takes no operand and gives weights")

    def with_tiles(self, layout: Layout) -> StoredWeights:
        return replace(self, tiles=weight_tiles(layout, self.result))

    def stored(self, storage: Storage) -> dict[str, TensorSpec]:
        """Return the stored tensors, from parameters that the program names ``<layer>.<part>``."""
        kind = self.result.type
        tensors: dict[str, TensorSpec] = {}
        if kind.kind != "norm":
            *experts, dout, din = kind.dims
            stack = storage.layout.stack
            rows = storage.parameter(f"{self.name}.weight")
            stacked = TensorSpec((*experts, -(-dout // stack), stack, din), lambda: stack_rows(rows.build(), stack))
            tensors[f"prefixes.{self.name}.weight"] = stacked
        for part in kind.parts:
            vector = "bias"
            if part in ("gain", "vector"):
                vector = "gain"
            tensors[f"prefixes.{self.name}.{vector}"] = self._vector(storage, vector)
        return tensors

    def _vector(self, storage: Storage, part: str) -> TensorSpec:
        vector = storage.parameter(f"{self.name}.{part}")
        if self.result.type.kind == "experts":
            return vector
        return whole(vector, self.result.type.dims[0])

    def interpret(self, run: Interpretation) -> Weights:
        kind = self.result.type
        prefix = f"prefixes.{self.name}"
        bias = run.tensors.get(f"{prefix}.bias")
        if kind.kind == "norm":
            return Weights(run.tensors.get(f"{prefix}.gain"), bias)
        return Weights(self._rows(run.tensors[f"{prefix}.weight"]), bias)

    def _rows(self, stacked: Tensor) -> Tensor:
        """Return stacked rows as the matrix that they are, or as that of each expert."""
        dout = self.result.type.dims[-2]
        return stacked.flatten(-3, -2)[..., :dout, :]

    def literal(self, run: LiteralRun) -> PrefixTiles | ExpertTiles:
        if self.result.type.kind == "experts":
            return run.expert_weights(self.name)
        return run.weights(self.name)

    def fused(self, run: FusedRun) -> FusedWeights:
        """Return views of what is stored; a layer's stacked rows are its matrix, up to the rows that fill the last
        prefix."""
        parts = run.stored(self.name)
        if "weight" not in parts:
            return FusedWeights(parts.get("gain"), parts.get("bias"))
        return FusedWeights(self._rows(parts["weight"]), parts.get("bias"))

    def stored_weight(self) -> str:
        return self.name

    def entries(self, costs: CostModel, result: Value) -> int:
        """Count nothing: the results are views of what is stored."""
        return 0
