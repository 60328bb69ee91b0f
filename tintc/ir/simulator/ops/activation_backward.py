"""`sim.activation_backward`: act'(x) dy, to first order (Def. G.3)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

from tintc.ir.core import register
from tintc.ir.functions import ACTIVATIONS
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.cost_model import DIFFERENCE_BYTES, CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.fused_kernels import fused_slope
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.shared.activation_slopes import activation_blocks, activation_derivative, derivative_slots
from tintc.ir.simulator.shared.first_order import DifferenceOp, widened
from tintc.ir.structure import StructuralBlock


@register("sim.activation_backward")
@dataclass(eq=False, kw_only=True)
class ActivationBackward(DifferenceOp):
    """(dy, x) -> act'(x) * dy, to first order; scheme and step `fd_step` as in `FiniteDifference`."""

    fn: str
    scheme: str
    fd_step: float

    def verify(self) -> None:
        self.expect(self.fn in ACTIVATIONS, f"unknown activation {self.fn!r}")
        self.check_difference()
        kinds = {value.type for value in (*self.operands, self.result)}
        self.expect(len(self.operands) == 2 and len(kinds) == 1, "takes dy and x of one width and keeps it")

    def interpret(self, run: Interpretation, dy: Tensor, x: Tensor) -> Tensor:
        return self.difference.of_activation(self.fn, x, dy)

    def fused(self, run: FusedRun, dy: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return dx. y: act(x), where the forward pass has left it."""
        return fused_slope(self.fn, self.difference, dy, x, y)

    def needs_activation_key(self) -> Hashable:
        return self.fn, self.operands[1]

    def scratch(self, costs: CostModel, itemsize: int) -> int:
        return DIFFERENCE_BYTES * costs.lengths[self] * self.results[0].type.per_token

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        """Return the blocks of the literal form, by name.

        Claim: they give ``dx = (act(x + h dy) - act(x)) / h``, tile by tile: that of `activation_derivative` with g =
        dy, where `fd_act_*` is act on the slots 0 and 1. QED. Central differences spare activations that have kinks:
        of these dx is exact (`tintc.ir.simulator.shared.activation_slopes`).

        In every coordinate dx is within ``h/2 sup|act''| dy^2`` of ``act'(x) dy`` (Theorem G.4): the remainder of a
        Taylor step of h dy, over h. ReLU is exact where ``|x| > h |dy|``, as no kink lies on the way, and elsewhere off
        by at most |dy| (Theorem G.7; tests/theorems/test_first_order_bounds.py).
        """
        return activation_blocks(layout, self.difference, self.fn, self.result.type.width)

    def slots(self, layout: Layout) -> int:
        return derivative_slots(layout, self.difference, self.fn, self.result.type.width)

    def literal(self, run: LiteralRun, dy: Tiles, x: Tiles) -> Tiles:
        width = self.result.type.width
        slopes = activation_derivative(run, self.difference, self.fn, widened(dy), widened(x), width)
        return [slope.to(dy[0].dtype) for slope in slopes]
