"""`sim.weights`: the auxiliary's weights, as prefixes store them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from tintc.ir.auxiliary.norm import whole_vector
from tintc.ir.block_specs import TensorSpec
from tintc.ir.core import Value, register
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.elements import Element
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.interface.literal_base import ExpertTiles, LiteralRun, PrefixTiles
from tintc.ir.simulator.interface.semantics import Interpretation, Weights
from tintc.ir.simulator.interface.storage import Storage
from tintc.ir.simulator.shared.linear_common import bias_in_prefix, weight_in_prefix, weight_tiles


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


def own_entry(vector: TensorSpec, row: int) -> tuple[int, ...]:
    """Return the index in a gain or bias of number `row` of `whole`."""
    *groups, width = vector.shape
    group, column = divmod(row % math.prod(vector.shape), width)
    return (group, column) if groups else (column,)


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

    def element(self, storage: Storage, tensor: str, index: tuple[int, ...]) -> Element:
        """Return what a number of the weights is: of which row and column, and where it stands in prefixes.

        A gain that prefixes hold as a matrix stands on its diagonal. Of rows beyond dout there is no entry and no
        place: they are zeros that fill the last prefix.
        """
        kind = self.result.type
        expert = -1
        own = index
        if kind.kind == "experts":
            expert, *own = index
        name = f"{self.name}.{tensor.rpartition('.')[2]}"
        if tensor.endswith(".weight"):
            return self._of_matrix(storage.layout, name, expert, *own)
        (row,) = own
        entry = index
        if expert < 0:
            entry = own_entry(storage.parameter(name), row)
        if tensor.endswith(".bias"):
            return Element("bias", name, entry, row, -1, expert, bias_in_prefix(storage.layout, kind, row))
        held_in = row
        if "vector" in kind.parts:
            held_in = 0
        return Element("gain", name, entry, row, places=(weight_in_prefix(storage.layout, held_in, row),))

    def _of_matrix(self, layout: Layout, name: str, expert: int, prefix: int, stacked: int, column: int) -> Element:
        row = prefix * layout.stack + stacked
        if row >= self.result.type.dims[-2]:
            return Element("padding", name, None, row, column, expert)
        entry = (row, column)
        if expert >= 0:
            entry = (expert, row, column)
        return Element("weight", name, entry, row, column, expert, (weight_in_prefix(layout, row, column),))

    def at(self, layout: Layout, tensor: str, expert: int, row: int, column: int) -> tuple[int, ...]:
        """Return the index of a number of the weights in the stored tensor (`stack_rows`). column: of a matrix."""
        index: tuple[int, ...] = (row,)
        if tensor.endswith(".weight"):
            index = (*divmod(row, layout.stack), column)
        if expert >= 0:
            return (expert, *index)
        return index

    def indices(self, storage: Storage, tensor: str, entry: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return every place of a number of the weights; a gain that heads share has as many as there are heads."""
        name = f"{self.name}.{tensor.rpartition('.')[2]}"
        parameter = storage.parameter(name)
        shape = parameter.shape
        if len(entry) != len(shape) or not all(0 <= i < n for i, n in zip(entry, shape, strict=True)):
            return []
        if self.result.type.kind == "experts":
            expert, *own = entry
            return [self.at(storage.layout, tensor, expert, own[0], own[-1])]
        if tensor.endswith(".weight"):
            return [self.at(storage.layout, tensor, -1, *entry)]
        count = math.prod(shape)
        first = entry[0]
        if len(entry) == 2:
            first = entry[0] * shape[1] + entry[1]
        return [(row,) for row in range(first, self.result.type.dims[0], count)]

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
