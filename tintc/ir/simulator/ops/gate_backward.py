"""`sim.gate_backward`: the gradients of g * act(u), that of u to first order (J.3, Def. G.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.ir.core import register
from tintc.ir.functions import ACTIVATIONS, at_least_fp32
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.cost_model import DIFFERENCE_BYTES, CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.fused_kernels import activate, fused_slope
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.kernels.choice import chosen
from tintc.ir.simulator.kernels.rows import has_kernel
from tintc.ir.simulator.ops.gate_forward import gate_blocks, gate_tiles
from tintc.ir.simulator.shared.activation_slopes import activation_blocks, activation_derivative, derivative_slots
from tintc.ir.simulator.shared.first_order import DifferenceOp, product, widened
from tintc.ir.structure import StructuralBlock


@register("sim.gate_backward")
@dataclass(eq=False, kw_only=True)
class GateBackward(DifferenceOp):
    """(dy, g, u) -> (dg, du): ``dg = dy act(u)``, and ``du = dy g act'(u)`` to first order, see `structure`."""

    fn: str
    scheme: str
    fd_step: float

    def verify(self) -> None:
        self.expect(self.fn in ACTIVATIONS, f"unknown activation {self.fn!r}")
        self.check_difference()
        kinds = {value.type for value in (*self.operands, *self.results)}
        shape = (len(self.operands), len(self.results), len(kinds)) == (3, 2, 1)
        self.expect(shape, "takes dy, g, u of one width and gives dg, du of that width")

    def interpret(self, run: Interpretation, dy: Tensor, g: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return dy * ACTIVATIONS[self.fn](u), self.difference.of_activation(self.fn, u, dy * g)

    def fused(self, run: FusedRun, dy: Tensor, g: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        spared = self.difference.spares(self.fn)
        if not spared and chosen("gate_backward", dy, g, u) and has_kernel(self.fn, u):
            from tintc.ir.simulator.kernels.triton_difference import gate_backward

            return gate_backward(self.fn, self.difference.for_activations(), dy, g, u)
        act = activate(self.fn, at_least_fp32(u))
        du = fused_slope(self.fn, self.difference, dy * g, u, act)
        act = act.to(u.dtype)
        if torch.is_grad_enabled():
            return dy * act, du
        return act.mul_(dy), du

    def scratch(self, costs: CostModel, itemsize: int) -> int:
        return DIFFERENCE_BYTES * costs.lengths[self] * self.results[0].type.per_token

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        """Return the blocks of the literal form, by name.

        Claim: they give ``dg = dy act(u)`` and ``du = (act(u + h p) - act(u)) / h`` with ``p = dy g``.

        y = g act(u) is linear in g, so that dg is exact: `gate_blocks` with a = dy. The product of slots makes p, and
        `activation_derivative` goes along it at u. QED.

        In every coordinate du is within ``h/2 sup|act''| p^2`` of ``act'(u) p``, as in `sim.activation_backward`.
        """
        blocks = activation_blocks(layout, self.difference, self.fn, self.results[0].type.width)
        return blocks | gate_blocks(self.fn)

    def slots(self, layout: Layout) -> int:
        return derivative_slots(layout, self.difference, self.fn, self.results[0].type.width)

    def literal(self, run: LiteralRun, dy: Tiles, g: Tiles, u: Tiles) -> tuple[Tiles, Tiles]:
        dg = gate_tiles(run, self.fn, dy, u)
        direction = [product(run, a, b) for a, b in zip(widened(dy), widened(g), strict=True)]
        width = self.results[0].type.width
        du = activation_derivative(run, self.difference, self.fn, direction, widened(u), width)
        return dg, [slope.to(dg[0].dtype) for slope in du]
