"""`sim.route`: a router's logits as the weights of a token's experts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from tintc.ir.block_specs import RouterSpec, TensorSpec
from tintc.ir.core import register
from tintc.ir.layout import Layout
from tintc.ir.router import RouterOptions, routing_weights
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.interface.storage import Storage, TableCount, split_cost
from tintc.ir.structure import StructuralBlock


@register("sim.route")
@dataclass(eq=False, kw_only=True)
class Route(RouterOptions, SimOp):
    """(z) -> r ``[B, T, E]``, zero for the experts that a token does not choose.

    Claim: the router block of a mixture-of-experts transformer gives it. It reads the E logits of a token, which stand
    in the first slots of its embedding, and writes E weights in their place; the choice is a gate that is constant
    between ties. Nothing back-propagates through it. QED. It is exact.
    """

    def interpret(self, run: Interpretation, z: Tensor) -> Tensor:
        return routing_weights(self, z, {key: run.table(name) for key, name in self.vectors().items()})

    def fused(self, run: FusedRun, z: Tensor) -> Tensor:
        return routing_weights(self, z, {key: run.table(name) for key, name in self.vectors().items()})

    def stored(self, storage: Storage) -> Mapping[str, TensorSpec]:
        return storage.tables(*self.vectors().values())

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        return {self._block: StructuralBlock(RouterSpec(self, self.result.type.width))}

    @property
    def _block(self) -> str:
        """Return the block's name: what it computes depends on all options, so the name does too."""
        key = f"{self.result.type.width} {self.options()}"
        return f"router_{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def slots(self, layout: Layout) -> int:
        return layout.tiles(self.result.type.width)

    def literal(self, run: LiteralRun, z: Tiles) -> Tiles:
        e = run.apply(self._block, run.embed(z))
        return [run.slot(e, index) for index in range(len(z))]

    def table_count(self, layout: Layout) -> TableCount:
        """Count an activation's forward pass: the table has no row for a router."""
        return TableCount(split_cost(layout), 0, 0)
