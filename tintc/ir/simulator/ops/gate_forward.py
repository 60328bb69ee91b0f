"""`sim.gate_forward`: g * act(u), a gated linear unit's product (J.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.ir.block_specs import ActivationSpec, ProductSpec
from tintc.ir.core import register
from tintc.ir.functions import ACTIVATIONS
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.fused_kernels import activate
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.interface.storage import TableCount, split_cost
from tintc.ir.structure import StructuralBlock


def gate_blocks(fn: str) -> dict[str, StructuralBlock]:
    """Return the blocks of the gated linear unit, by name.

    Claim: [a, u] becomes [a * act(u), .]. The first block applies act to slot 1 only: [a, act(u)]; the second
    multiplies slot 1 into slot 0. Pads stay zero because a's are, whatever act(0) is. QED. It is exact.
    """
    return {
        f"gate_act_{fn}": StructuralBlock(ActivationSpec(fn, (1,))),
        "product_0_1": StructuralBlock(ProductSpec(0, 1)),
    }


def gate_tiles(run: LiteralRun, fn: str, a: Tiles, u: Tiles) -> Tiles:
    """Return a * act(u), tile by tile."""
    embedded = (run.embed([ai, ui]) for ai, ui in zip(a, u, strict=True))
    return [run.slot(run.apply("product_0_1", run.apply(f"gate_act_{fn}", e))) for e in embedded]


@register("sim.gate_forward")
@dataclass(eq=False, kw_only=True)
class GateForward(SimOp):
    """(g, u) -> g * act(u).

    Claim: `gate_blocks` with a = g gives it, tile by tile. QED.
    """

    fn: str

    def verify(self) -> None:
        self.expect(self.fn in ACTIVATIONS, f"unknown activation {self.fn!r}")
        kinds = {value.type for value in (*self.operands, self.result)}
        self.expect(len(self.operands) == 2 and len(kinds) == 1, "takes g and u of one width and keeps it")

    def interpret(self, run: Interpretation, g: Tensor, u: Tensor) -> Tensor:
        return g * ACTIVATIONS[self.fn](u)

    def fused(self, run: FusedRun, g: Tensor, u: Tensor) -> Tensor:
        act = activate(self.fn, u, run.frees(self, self.operands[1]))
        if torch.is_grad_enabled():
            return g * act
        return act.mul_(g)

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        return gate_blocks(self.fn)

    def slots(self, layout: Layout) -> int:
        return 2

    def literal(self, run: LiteralRun, g: Tiles, u: Tiles) -> Tiles:
        return gate_tiles(run, self.fn, g, u)

    def table_count(self, layout: Layout) -> TableCount:
        """Count the activation it contains: the table has no row for a gate."""
        return TableCount(split_cost(layout), 2 * layout.d_sim * layout.n_heads, 0)
