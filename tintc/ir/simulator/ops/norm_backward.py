"""`sim.norm_backward`: dx = J_f(x) (gamma * dy), to first order (Def. F.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from tintc.ir.block_specs import LinearSpec, ProductSpec
from tintc.ir.core import register
from tintc.ir.functions import at_least_fp32, norm_scale, normalise
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.cost_model import DIFFERENCE_BYTES, CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.interface.fused_kernels import fused_norm_slope
from tintc.ir.simulator.interface.literal_base import LiteralRun, PrefixTiles, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation, Weights
from tintc.ir.simulator.kernels.choice import chosen
from tintc.ir.simulator.kernels.rows import LARGEST
from tintc.ir.simulator.ops.linear_backward import backward_block, backward_tiles
from tintc.ir.simulator.shared.first_order import (
    DifferenceOp,
    difference,
    difference_across,
    difference_blocks,
    mean,
    mean_stages,
    product,
    unit,
    unit_blocks,
    widened,
)
from tintc.ir.simulator.shared.norm_common import NormOp, check_norm, for_all_heads, has, vector_blocks, vectors
from tintc.ir.simulator.shared.shared_vectors import spread_blocks, spread_out
from tintc.ir.structure import StructuralBlock


@register("sim.norm_backward")
@dataclass(eq=False, kw_only=True)
class NormBackward(NormOp, DifferenceOp):
    """(dy, x) or (W, dy, x) -> dx: a difference of f along ``g = gamma * dy``, see `structure`.

    Where tokens have steps of their own, c of `FiniteDifference` is sigma(x) (rms(x) for RMSNorm), the norm's eps
    included.
    """

    scheme: str
    fd_step: float

    def verify(self) -> None:
        self.expect(len(self.operands) in (2, 3), "takes dy and x, or weights, dy and x")
        if len(self.operands) == 3:
            check_norm(self, self.operands[0], self.operands[1])
        self.expect(self.operands[-2].type == self.operands[-1].type == self.result.type, "keeps the width")
        self.check_difference()

    def interpret(self, run: Interpretation, *operands: Any) -> Tensor:
        g, x = operands[-2:]
        w, _ = self.weights_and(operands, Weights(None, None))
        if w.weight is not None:
            g = g * for_all_heads(w.weight, x.shape[-1])
        x, g = (value.unflatten(-1, (self.groups, -1)) for value in (x, g))
        scale = norm_scale(self.kind, x, self.eps)
        return self.difference.derivative(lambda z: normalise(self.kind, z, self.eps), x, g, scale).flatten(-2)

    def fused(self, run: FusedRun, *operands: Any) -> Tensor:
        dy, x = operands[-2:]
        w, _ = self.weights_and(operands, FusedWeights(None, None))
        gain = None
        if w.weight is not None:
            gain = for_all_heads(w.weight, x.shape[-1])
        if chosen("norm_backward", dy, x) and x.shape[-1] <= LARGEST:
            return self._by_kernel(dy, x, gain)
        wide = at_least_fp32(x)
        g = at_least_fp32(dy)
        if gain is not None:
            g = g * gain.to(g.dtype)
        if self.groups == 1:
            return fused_norm_slope(self.kind, self.eps, self.difference, g, wide).to(x.dtype)
        wide, g = (value.unflatten(-1, (self.groups, -1)) for value in (wide, g))
        return fused_norm_slope(self.kind, self.eps, self.difference, g, wide).to(x.dtype).flatten(-2)

    def _by_kernel(self, dy: Tensor, x: Tensor, gain: Tensor | None) -> Tensor:
        from tintc.ir.simulator.kernels.triton_norm import norm_backward

        if gain is not None:
            gain = gain.reshape(-1, x.shape[-1])
        return norm_backward(self.kind, self.groups, self.eps, self.difference, dy, x, gain)

    def scratch(self, costs: CostModel, itemsize: int) -> int:
        return DIFFERENCE_BYTES * costs.lengths[self] * self.results[0].type.width

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        """Return the blocks of the literal form, by name.

        Claim: they give ``dx = (f(x + h g) - f(x)) / h`` with ``g = gamma * dy``.

        g: of a diagonal gain, `linear_backward` makes ``diag(gamma)^T dy``; of a vector, `vectors_block` brings gamma
        to every token, `spread_out` to all heads that share it, and the product of slots is ``dy * gamma``.

        The difference: `fd_step_*` makes [x + eps d, x] of a direction d and x, the group norm takes f of both slots,
        each on its own, and `fd_difference_*` is (first - second) / eps. A value in several tiles goes through f twice,
        all tiles together. With a constant step d is g, and this is dx with h = eps.

        ``central`` has x - eps d in place of the second x and divides by 2 eps, with the steps of ``token``: this gives
        ``(f(x + h g) - f(x - h g)) / 2h``, whose error is of second order in h.

        With ``token``, d is ``c g / r`` with r = rms(g), made by `unit` and a product with c, so that ``eps d = h g``
        for ``h = eps c / r``. The difference is then divided by eps; times r and times 1/c it is divided by h.

        c and 1/c: `fd_inverse_*` normalises slot 1 of [x, x, 0] and writes 1/c into slot 2 (a norm can:
        `NormOp.spec`): [x, f(x), 1/c]. The product makes slot 0 ``x f(x)``, whose mean is var / c:
        ``mean(x (x - mu)) = var``, and for RMSNorm ``mean(x x)`` stands for var. `fd_scale_*` takes that mean and adds
        eps / c, with the eps of the norm. As ``c^2 = var + eps``, slot 0 is c. QED.

        dx approximates ``J^T g`` for the Jacobian J of f at x, which is symmetric, so that it is a derivative along g.
        The error is of first order: at most ``h D^-1/2 c^-2 |g|^2`` where ``h |g| <= sqrt(D) c / 4``, which is
        ``eps |g| / c`` with ``token`` (Theorem F.4; construction.md, section 5.2;
        tests/theorems/test_first_order_bounds.py). D is the width of a group.
        """
        n = self.spread(layout)
        part = self.part
        groups = self.tile_groups(layout)
        blocks = difference_blocks(layout, self.difference, self._base)
        if n == 1:
            blocks[self.name("fd", layout)] = StructuralBlock(self.spec(layout, ((0,), (1,))), "replace")
        else:
            blocks[self.name("norm", layout)] = self.forward_block(layout)
        if self.weights is not None and has(self.weights, "gain"):
            blocks["linear_backward"] = backward_block(layout)
        if self.weights is not None and has(self.weights, "vector"):
            blocks |= vector_blocks(layout, self.weights) | spread_blocks(layout, self.weights, self.result)
        if self.difference.per_token:
            blocks |= unit_blocks(layout, n, part, groups)
            if n == 1:
                inverse = self.spec(layout, ((1,),), inverse=2)
            else:
                inverse = self.spec(layout, (tuple(range(n)),), inverse=n)
            blocks[self.name("fd_inverse", layout)] = StructuralBlock(inverse, "replace")
            scale = mean_stages(layout, part, {(0, 2): self.eps, (2, 2): 1.0}, groups)
            blocks[self.name("fd_scale", layout)] = StructuralBlock(LinearSpec(scale))
            blocks["product_0_2"] = StructuralBlock(ProductSpec(0, 2))
        return blocks

    def slots(self, layout: Layout) -> int:
        # [x, f(x), 1/c] stand together with ``token``, [g, x] otherwise.
        if self.difference.per_token:
            return max(3, self.spread(layout) + 1)
        return max(2, self.spread(layout))

    def scores(self, layout: Layout, run: Interpretation, *operands: Any) -> Sequence[Tensor]:
        dy: Tensor = operands[-2]
        return (dy,)

    def literal(self, run: LiteralRun, *operands: Any) -> Tiles:
        dy, x = operands[-2:]
        g = widened(self._direction(run, dy, *operands[:-2]))
        wide = widened(x)
        n = self.spread(run.layout)
        dx: Tiles = []
        for start in range(0, len(x), n):
            dx += self._group(run, g[start : start + n], wide[start : start + n])
        return [tile.to(x[0].dtype) for tile in dx]

    def _direction(self, run: LiteralRun, dy: Tiles, w: PrefixTiles | None = None) -> Tiles:
        """Return the tiles of ``g = gamma * dy``; dy itself without a gain."""
        if w is None or self.weights is None:
            return dy
        if has(self.weights, "gain"):
            return backward_tiles(run, w, dy)
        if has(self.weights, "vector"):
            gain, _ = vectors(run, self.weights, w, dy[0])
            gains = spread_out(run, gain, self.weights, self.result)
            return [product(run, tile, factor) for tile, factor in zip(dy, gains, strict=True)]
        return dy

    @property
    def _base(self) -> int:
        """Return the slot of x before a step: 2 with ``token``, else 1."""
        return 1 + self.difference.per_token

    def _group(self, run: LiteralRun, g: Tiles, x: Tiles) -> Tiles:
        """Return dx of what stands in one slot, or of one group in several slots."""
        if not self.difference.per_token:
            return self._difference(run, g, x)
        units, size = unit(run, g, self.part, self.tile_groups(run.layout))
        c, inverse = self._scale(run, x)
        slopes = self._difference(run, [product(run, direction, c) for direction in units], x)
        steps = (run.apply("product_0_1", run.embed([slope, size, inverse])) for slope in slopes)
        return [run.slot(run.apply("product_0_2", e)) for e in steps]

    def _difference(self, run: LiteralRun, g: Tiles, x: Tiles) -> Tiles:
        """Return ``(f(x + eps g) - f(x)) / eps``, tile by tile."""
        base = self._base
        if len(x) > 1:
            return difference_across(run, g, x, base, self.difference, partial(self.normalised, run))
        e = run.embed([g[0], *x * base])
        return [difference(run, e, base, self.difference, lambda e: run.apply(self.name("fd", run.layout), e))]

    def _scale(self, run: LiteralRun, x: Tiles) -> tuple[Tensor, Tensor]:
        """Return c and 1/c, each in every coordinate of a slot ``[B, T, P]``.

        [x, x, 0] -> [x, f(x), 1/c] -> [x f(x), ., 1/c] -> [c, ., 1/c]; the claim stands at `structure`. Of a value in
        several tiles, the first gives its part of the mean and eps / c, and the others' parts of the mean are added.
        """
        n = len(x)
        fd_inverse = self.name("fd_inverse", run.layout)
        normed: Tiles = []
        if n == 1:
            e = run.apply(fd_inverse, run.embed([x[0], x[0]]))
        else:
            e = run.apply(fd_inverse, run.embed(x))
            normed = [run.slot(e, i) for i in range(n)]
            e = run.embed([x[0], normed[0], run.slot(e, n)])
        e = run.apply(self.name("fd_scale", run.layout), run.apply("product_0_1", e))
        c = run.slot(e)
        for x_tile, normed_tile in zip(x[1:], normed[1:], strict=True):
            c = c + mean(run, product(run, x_tile, normed_tile), self.part)
        return c, run.slot(e, 2)
