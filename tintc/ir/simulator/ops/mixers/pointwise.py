"""`sim.pointwise`: a function of what a mixer's matrix is made of, coordinate by coordinate."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torch import Tensor

from tintc.ir.block_specs import PointwiseSpec, TensorSpec
from tintc.ir.core import register
from tintc.ir.layout import Layout
from tintc.ir.pointwise import PointwiseOptions, apply_pointwise
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.interface.storage import Storage, TableCount, split_cost
from tintc.ir.structure import StructuralBlock


@register("sim.pointwise")
@dataclass(eq=False, kw_only=True)
class Pointwise(PointwiseOptions, SimOp):
    """(x) -> ``gain * clamp(fn(x + shift))``.

    Claim: an activation with a bias before it and a scale after it, tile by tile, on the first coordinates of a slot
    alone, so that pads stay zero whatever fn(shift) is there. Nothing back-propagates through it. QED. It is exact.
    """

    def interpret(self, run: Interpretation, x: Tensor) -> Tensor:
        return apply_pointwise(self, x, {key: run.table(name) for key, name in self.vectors().items()})

    def fused(self, run: FusedRun, x: Tensor) -> Tensor:
        return apply_pointwise(self, x, {key: run.table(name) for key, name in self.vectors().items()})

    def stored(self, storage: Storage) -> dict[str, TensorSpec]:
        return storage.tables(*self.vectors().values())

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        width = self.result.type.width
        starts = range(0, width, layout.pitch)
        ends = (min(start + layout.pitch, width) for start in starts)
        specs = (PointwiseSpec(self, start, end) for start, end in zip(starts, ends, strict=True))
        return {self._block(tile): StructuralBlock(spec) for tile, spec in enumerate(specs)}

    def _block(self, tile: int) -> str:
        """Return a block's name: what it computes depends on all options, so the name does too."""
        key = hashlib.sha256(f"{self.result.type.width} {self.options()}".encode()).hexdigest()[:12]
        return f"pointwise_{self.fn}_{key}_{tile}"

    def literal(self, run: LiteralRun, x: Tiles) -> Tiles:
        return [run.slot(run.apply(self._block(index), run.embed([tile]))) for index, tile in enumerate(x)]

    def table_count(self, layout: Layout) -> TableCount:
        return TableCount(split_cost(layout), 0, 0)
