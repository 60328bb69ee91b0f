"""`sim.convolution_forward` and `sim.convolution_backward`: a short causal convolution of every channel on its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tintc.ir.block_specs import ConvolutionSpec, TensorSpec
from tintc.ir.convolution import apply_convolution, apply_transposed_convolution, continue_convolution
from tintc.ir.core import Value, register
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.interface.storage import Storage, TableCount, attention_cost
from tintc.ir.simulator.ops.mixers.mixer_base import MixerOp
from tintc.ir.structure import StructuralBlock


@dataclass(eq=False, kw_only=True)
class _Convolution(MixerOp):
    """(x) -> a convolution of x, or its transpose; weight ``[C, w]``, bias and padding ``[C]`` are tables that nothing
    updates. padding: what padding reads as (empty: zero)."""

    TRANSPOSED: ClassVar[bool]

    weight: str
    bias: str = ""
    padding: str = ""

    def verify(self) -> None:
        self.expect(len(self.operands) == 1 and self.operands[0].type == self.result.type, "keeps the width")

    def stored(self, storage: Storage) -> dict[str, TensorSpec]:
        return storage.tables(self.weight, self.bias, self.padding)

    def vectors(self, run: Interpretation | FusedRun) -> tuple[Tensor | None, Tensor | None]:
        """Return the bias, and what padding reads as; None for what is not there."""
        bias, padding = (run.table(name) if name else None for name in (self.bias, self.padding))
        return bias, padding

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        """Return the module's blocks, one for every tile.

        Claim: w heads of constant scores give the w shifted copies, head i with a mask that lets token t see token
        ``t - i`` alone (in the transpose ``t + i``); each is multiplied by the weights of its lag, which stand in a
        slot of their own, and a residual connection adds them and the bias. The block does these at once. Padding is
        zero, which a gate sees to; where it reads as something else, a slot that marks it is multiplied by that vector,
        and a residual connection adds the product before. QED. It is exact.
        """
        width = self.result.type.width
        return {
            self._block(tile): StructuralBlock(
                ConvolutionSpec(
                    self.weight, self.bias, self.padding, tile, min(layout.pitch, width - start), self.TRANSPOSED
                )
            )
            for tile, start in enumerate(range(0, width, layout.pitch))
        }

    def _block(self, tile: int) -> str:
        """Return a block's name: it reads a table of its layer, so the name does too."""
        key = hashlib.sha256(f"{self.weight} {self.bias} {self.padding}".rstrip().encode()).hexdigest()[:12]
        return f"{self.opname.removeprefix('sim.')}_{key}_{tile}"

    def multiply_adds(self, costs: CostModel, x: Value) -> int:
        return 4 * costs.lengths[self] * x.type.width

    def table_count(self, layout: Layout) -> TableCount:
        """Count one attention: the table has no row for a convolution."""
        q = attention_cost(layout)
        return TableCount(q, q, 0)


@register("sim.convolution_forward")
@dataclass(eq=False, kw_only=True)
class ConvolutionForward(_Convolution):
    """(x) -> ``y_tc = sum_i w_ci x_(t-i)c + b_c``."""

    TRANSPOSED = False
    CARRIES_STATE: ClassVar[bool] = True

    def interpret(self, run: Interpretation, x: Tensor) -> Tensor:
        bias, padding = self.vectors(run)
        return apply_convolution(x, run.table(self.weight), bias, run.inputs.real_tokens, padding)

    def fused(self, run: FusedRun, x: Tensor) -> Tensor:
        bias, padding = self.vectors(run)
        return apply_convolution(x, run.table(self.weight), bias, self.real(run, x.shape[1]), padding)

    def slots(self, layout: Layout) -> int:
        return 1 + bool(self.padding)

    def literal(self, run: LiteralRun, x: Tiles) -> Tiles:
        real = run.real_tokens()
        results: Tiles = []
        for index, tile in enumerate(x):
            read = [tile * real]
            if self.padding:
                read.append(torch.zeros_like(tile) + (1 - real))
            results.append(run.slot(run.apply(self._block(index), run.embed(read))))
        return results

    def carried(self, run: FusedRun, state: Tensor | None, *operands: Tensor) -> tuple[Tensor, Tensor]:
        """Return the results, and as many of the last inputs as later tokens reach, ``[B, w - 1, C]``."""
        (x,) = operands
        bias, padding = self.vectors(run)
        real = self.real(run, x.shape[1])
        return continue_convolution(x, run.table(self.weight), bias, real, padding, state)


@register("sim.convolution_backward")
@dataclass(eq=False, kw_only=True)
class ConvolutionBackward(_Convolution):
    """(dy) -> ``dx_tc = sum_i w_ci dy_(t+i)c``."""

    TRANSPOSED = True

    def interpret(self, run: Interpretation, dy: Tensor) -> Tensor:
        return apply_transposed_convolution(dy, run.table(self.weight), run.inputs.real_tokens)

    def fused(self, run: FusedRun, dy: Tensor) -> Tensor:
        return apply_transposed_convolution(dy, run.table(self.weight), self.real(run, dy.shape[1]))

    def literal(self, run: LiteralRun, dy: Tiles) -> Tiles:
        real = run.real_tokens()
        return [run.slot(run.apply(self._block(index), run.embed([tile]))) * real for index, tile in enumerate(dy)]
