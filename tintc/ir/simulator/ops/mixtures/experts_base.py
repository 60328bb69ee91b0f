"""The base of the three modules of the experts' linear layers: tiles, routing, scores and counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from tintc.ir.core import Value
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.chosen_experts import Routing
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.shared.linear_common import weight_tiles


@dataclass(eq=False, kw_only=True)
class ExpertsOp(SimOp):
    """(W, r, value) -> ...: an op on the weights of all experts. `tiles` (added by planning): of one expert's weights,
    row and column tiles."""

    tiles: tuple[int, int] = (0, 0)

    def with_tiles(self, layout: Layout) -> Self:
        return replace(self, tiles=weight_tiles(layout, self.operands[0]))

    def weight_operand(self) -> Value:
        return self.operands[0]

    def routing(self, run: FusedRun, r: Tensor, value: Tensor) -> Routing:
        """Return the routing of a routed value ``[B, n, k, width]``."""
        return run.routing(r, self.operands[1], value.shape[2])

    def products(self, costs: CostModel, w: Value) -> int:
        """Count the multiply-adds of each token's experts, and of pending updates: of all vectors that were trained on,
        the share that an expert has if all are chosen alike."""
        experts, dout, din = w.type.dims
        vectors = costs.lengths[self] * self.operands[-1].type.dims[1]
        met = sum(update.train * update.source.type.dims[1] // experts for update in costs.updates(w))
        return vectors * (dout * din + met * (dout + din))
