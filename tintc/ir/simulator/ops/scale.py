"""`sim.scale`: a value times a number, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tintc.ir.block_specs import LinearSpec
from tintc.ir.core import register
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.interface.storage import TableCount, split_cost
from tintc.ir.simulator.shared.first_order import slot_map
from tintc.ir.structure import StructuralBlock


@register("sim.scale")
@dataclass(eq=False, kw_only=True)
class Scale(SimOp):
    """(x) -> factor * x: a dimension-wise operation whose every matrix is the factor on slot 0's diagonal, tile by
    tile.

    Claim: forward and backward are this one module. The map is ``factor I``, its own transpose, so
    ``dx = factor * dy``. QED. It is exact.
    """

    factor: float

    def verify(self) -> None:
        self.expect(len(self.operands) == 1 and self.operands[0].type == self.result.type, "keeps the width")

    def interpret(self, run: Interpretation, x: Tensor) -> Tensor:
        return self.factor * x

    def fused(self, run: FusedRun, x: Tensor) -> Tensor:
        if run.frees(self, self.operands[0]):
            return x.mul_(self.factor)
        return x * self.factor

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        return {self._block: StructuralBlock(LinearSpec((slot_map(layout, {(0, 0): self.factor}),)))}

    @property
    def _block(self) -> str:
        """Return the block's name: its tensors depend on the factor, so the name does too (a dot may not stand in
        it)."""
        return f"scale_{self.factor!r}".replace(".", "p")

    def literal(self, run: LiteralRun, x: Tiles) -> Tiles:
        return [run.slot(run.apply(self._block, run.embed([tile]))) for tile in x]

    def table_count(self, layout: Layout) -> TableCount:
        return TableCount(split_cost(layout), split_cost(layout), 0)
