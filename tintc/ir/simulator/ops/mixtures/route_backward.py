"""`sim.route_backward` and `sim.weights_backward`: the gradients of a router's logits, and of a token's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tintc.ir.block_specs import LinearSpec, ProductSpec, RouterSpec, TensorSpec
from tintc.ir.core import register
from tintc.ir.layout import Layout
from tintc.ir.routed import check_routed, weights_gradient
from tintc.ir.router import RouterOptions, routing_gradient
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.literal_base import LiteralRun, RoutedTiles, Tiles, residual
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.interface.storage import Storage
from tintc.ir.simulator.shared.first_order import mean, mean_block, product
from tintc.ir.simulator.shared.matrix_stages import matrix_stages
from tintc.ir.structure import StructuralBlock


@register("sim.route_backward")
@dataclass(eq=False, kw_only=True)
class RouteBackward(RouterOptions, SimOp):
    """(dr, z) -> dz ``[B, T, E]``, the choice of experts held constant.

    Claim: the router block of `sim.route`, run backward, gives it. It reads dr in a token's first slots and the logits
    z in the next, and writes dz in the place of dr. The rules are chains of products with the weights, sums over a
    token's experts, quotients and sigmoids (`tintc.ir.router.routing_gradient`); the choice is a gate that is constant
    between ties. QED. It is exact.
    """

    def verify(self) -> None:
        self.expect(len(self.operands) == 2, "takes dr and z")
        dr, z = self.operands
        self.expect(dr.type == z.type, "dr and z have one width")
        self.check_options(z.type, self.result.type)

    def interpret(self, run: Interpretation, dr: Tensor, z: Tensor) -> Tensor:
        return routing_gradient(self, z, dr, {key: run.table(name) for key, name in self.vectors().items()})

    def fused(self, run: FusedRun, dr: Tensor, z: Tensor) -> Tensor:
        return routing_gradient(self, z, dr, {key: run.table(name) for key, name in self.vectors().items()})

    def stored(self, storage: Storage) -> Mapping[str, TensorSpec]:
        return storage.tables(*self.vectors().values())

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        return {self._block: StructuralBlock(RouterSpec(self, self.result.type.width, backward=True))}

    @property
    def _block(self) -> str:
        """Return the block's name: what it computes depends on all options, so the name does too."""
        key = f"{self.result.type.width} {self.options()}"
        return f"router_backward_{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def slots(self, layout: Layout) -> int:
        return 2 * layout.tiles(self.result.type.width)

    def literal(self, run: LiteralRun, dr: Tiles, z: Tiles) -> Tiles:
        e = run.apply(self._block, run.embed([*dr, *z]))
        return [run.slot(e, index) for index in range(len(z))]


@register("sim.weights_backward")
@dataclass(eq=False, kw_only=True)
class WeightsBackward(SimOp):
    """(r, a, y) -> ``<a_t, y_te>`` for every expert e that token t has chosen, ``[B, T, E]``, zero for the others.

    Of a weighted sum of y, a is the gradient dy_t; of weighted inputs x_t, a is x_t and y_te the gradient of what
    expert e reads.
    """

    ROUTES: ClassVar[bool] = True

    def verify(self) -> None:
        self.expect(len(self.operands) == 3, "takes the routing, one vector, and one for each expert")
        r, a, y = self.operands
        check_routed(self, r, y)
        self.expect(a.type.kind == "tokens" and a.type.width == y.type.width, f"takes {a.type} and {y.type}")
        self.expect(self.result.type == r.type, "gives one number for each expert")

    def interpret(self, run: Interpretation, r: Tensor, a: Tensor, y: Tensor) -> Tensor:
        return weights_gradient(r, a, y)

    def fused(self, run: FusedRun, r: Tensor, a: Tensor, y: Tensor) -> Tensor:
        routing = run.routing(r, self.operands[0], y.shape[2])
        products = (y @ a[..., None])[..., 0] * (routing.weights != 0)
        return torch.zeros_like(r).scatter(-1, routing.experts, products)

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        """Return the blocks of the literal form, by name.

        Claim: they give ``<a_t, y_te>`` in coordinate e.

        Tile by tile, the product of slots is ``a y_e``, and ``fd_mean_1`` writes the sum of a slot's coordinates to all
        of them; residual connections add the tiles. Experts are taken from the last to the first: ``experts_back``
        moves what is there one place to the right, ``experts_over`` the last coordinate of a slot to the first of the
        next, and ``experts_one`` keeps coordinate 0 of the new sum, which a residual connection adds. After the first
        expert, e's sum has been moved e times. A token that has not chosen e has y_te = 0. QED. It is exact.
        """
        last = layout.pitch - 1
        shift = [(place + 1, place) for place in range(last)]
        return {
            "product_0_1": StructuralBlock(ProductSpec(0, 1)),
            "experts_back": StructuralBlock(LinearSpec(matrix_stages(layout, shift))),
            "experts_over": StructuralBlock(LinearSpec(matrix_stages(layout, [(0, last)]))),
            "experts_one": StructuralBlock(LinearSpec(matrix_stages(layout, [(0, 0)]))),
            **mean_block(layout, 1),
        }

    def slots(self, layout: Layout) -> int:
        return 2

    def literal(self, run: LiteralRun, r: Tiles, a: Tiles, y: RoutedTiles) -> Tiles:
        weights = [torch.zeros_like(tile) for tile in r]
        for tiles in reversed(y):
            sums = [mean(run, product(run, one, other), 1) for one, other in zip(a, tiles, strict=True)]
            first = run.slot(run.apply("experts_one", run.embed([sum(sums[1:], sums[0])])))
            moved = [run.slot(run.apply("experts_back", run.embed([tile]))) for tile in weights]
            over = [run.slot(run.apply("experts_over", run.embed([tile]))) for tile in weights[:-1]]
            weights = residual(moved, [first, *over])
        return weights
