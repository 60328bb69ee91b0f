"""`sim.norm_backward`: dx = J_f(x) (gamma * dy), to first order (Def. F.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.ir.auxiliary.norm import per_token
from tintc.ir.core import register
from tintc.ir.functions import FiniteDifference, at_least_fp32, norm_scale, normalise
from tintc.ir.layout import Layout
from tintc.ir.simulator.base import Interpretation, LiteralRun, PrefixTiles, SimOp, Tiles, Weights
from tintc.ir.simulator.first_order import (
    check_scheme,
    difference,
    difference_blocks,
    mean_stages,
    unit,
    unit_blocks,
    widened,
)
from tintc.ir.simulator.fused_base import FusedRun, FusedWeights, rms, step_size
from tintc.ir.simulator.fused_counts import DIFFERENCE_BYTES, FusedCounts
from tintc.ir.simulator.linear_backward import backward_block, backward_tiles
from tintc.ir.simulator.norm_common import check_norm, group_name, has, vector_blocks, vectors
from tintc.ir.structure import Block, GroupNormSpec, LinearSpec, ProductSpec


@register("sim.norm_backward")
@dataclass(eq=False, kw_only=True)
class NormBackward(SimOp):
    """(dy, x) or (W, dy, x) -> dx. The Jacobian of f is symmetric, so J^T g is a difference of f along g = gamma dy.

    scheme ``fixed`` or ``token`` with step `fd_step`; for ``token``, c = sigma(x), the norm's eps included.
    """

    kind: str
    eps: float
    scheme: str
    fd_step: float

    def verify(self) -> None:
        self.expect(len(self.operands) in (2, 3), "takes dy and x, or weights, dy and x")
        if len(self.operands) == 3:
            check_norm(self, self.operands[0], self.operands[1])
        self.expect(self.operands[-2].type == self.operands[-1].type == self.result.type, "keeps the width")
        check_scheme(self, self.scheme)

    def interpret(self, run: Interpretation, *operands: Weights | Tensor) -> Tensor:
        dy, x = operands[-2:]
        assert isinstance(dy, Tensor) and isinstance(x, Tensor)
        if len(operands) == 3:
            w = operands[0]
            assert isinstance(w, Weights)
            dy = dy * per_token(w.weight) if w.weight is not None else dy
        f = FiniteDifference(self.scheme, self.fd_step)
        return f.derivative(lambda z: normalise(self.kind, z, self.eps), x, dy, norm_scale(self.kind, x, self.eps))

    def fused(self, run: FusedRun, *operands: FusedWeights | Tensor) -> Tensor:
        dy, x = operands[-2:]
        assert isinstance(dy, Tensor) and isinstance(x, Tensor)
        wide, g = at_least_fp32(x), at_least_fp32(dy)
        if len(operands) == 3:
            w = operands[0]
            assert isinstance(w, FusedWeights)
            g = g if w.weight is None else g * per_token(w.weight).to(g.dtype)
        return self._fused_difference(wide, g).to(x.dtype)

    def _fused_difference(self, x: Tensor, g: Tensor) -> Tensor:
        """``(f(x + h g) - f(x)) / h`` from three sums per token, without the cancellation.

        Let x have its mean taken off, s be the scale of f at x (x = s f), and s' that at x + h g. With m the mean
        of g and p / 2, q those of x g and (g - m)^2: ``s'^2 = s^2 + h p + h^2 q``, and f(x + h g) - f(x) is
        ``h (g - m) / s' + x (1/s' - 1/s)``, where ``1/s' - 1/s = -h (p + h q) / (s s' (s + s'))``. For RMSNorm, m = 0.
        QED.
        """
        f, inverse = self._normalised(x)
        m = g.mean(-1, keepdim=True) if self.kind == "layer" else None
        s, size = inverse.reciprocal(), rms(g)
        p = torch.linalg.vecdot(f, g)[..., None] * s * (2 / x.shape[-1])
        q = size.square() if m is None else size.square() - m.square()
        h = self.fd_step if self.scheme == "fixed" else s * step_size(self.fd_step, size)
        change = p + h * q
        stepped = (s.square() + h * change).rsqrt()
        dx = g * stepped if m is None else torch.addcmul(-m * stepped, g, stepped)
        return torch.addcmul(dx, f, -change * stepped / (s + stepped.reciprocal()))

    def _normalised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and 1/s; the kernel that has both gives no gradient through 1/s."""
        if self.kind == "layer" and not torch.is_grad_enabled():
            f, _, inverse = torch.native_layer_norm(x, x.shape[-1:], None, None, self.eps)
            return f, inverse
        x = x - x.mean(-1, keepdim=True) if self.kind == "layer" else x
        inverse = (rms(x).square() + self.eps).rsqrt()
        return x * inverse, inverse

    def scratch(self, counts: FusedCounts, itemsize: int) -> int:
        return DIFFERENCE_BYTES * counts.lengths[self] * self.results[0].type.width

    def structure(self, layout: Layout) -> dict[str, Block]:
        """`fd_scale_*` turns slot 0 = x * f(x) into c: mean(x f(x)) = var / c, and var / c + eps / c = c."""
        blocks = difference_blocks(layout, self.fd_step, 1 if self.scheme == "fixed" else 2)
        blocks[f"fd_{self._group}"] = Block(GroupNormSpec(((0,), (1,)), self.kind, self.eps, layout.d_aux), "replace")
        if len(self.operands) == 3 and has(self.operands[0], "gain"):
            blocks["linear_backward"] = backward_block(layout)
        if len(self.operands) == 3 and has(self.operands[0], "vector"):
            blocks |= vector_blocks(layout, self.operands[0])
        if self.scheme == "token":
            blocks |= unit_blocks(layout, 1, layout.d_aux)
            inverse = GroupNormSpec(((1,),), self.kind, self.eps, layout.d_aux, inverse=2)
            blocks[f"fd_inverse_{self._group}"] = Block(inverse, "replace")
            scale = mean_stages(layout, layout.d_aux, {(0, 2): self.eps, (2, 2): 1.0})
            blocks[f"fd_scale_{self._group}"] = Block(LinearSpec(scale))
            blocks["product_0_2"] = Block(ProductSpec(0, 2))
        return blocks

    @property
    def _group(self) -> str:
        return group_name(self.kind, self.eps)

    def slots(self, layout: Layout) -> int:
        return 3 if self.scheme == "token" else 2

    def scores(self, layout: Layout, run: Interpretation, *operands: Weights | Tensor) -> Sequence[Tensor]:
        assert isinstance(operands[-2], Tensor)
        return (operands[-2],)

    def literal(self, run: LiteralRun, *operands: PrefixTiles | Tiles) -> Tiles:
        dy, x = operands[-2:]
        assert isinstance(dy, list) and isinstance(x, list)
        g = dy
        if len(operands) == 3 and has(self.operands[0], "gain"):
            w = operands[0]
            assert isinstance(w, PrefixTiles)
            g = backward_tiles(run, w, dy)
        if len(operands) == 3 and has(self.operands[0], "vector"):
            w = operands[0]
            assert isinstance(w, PrefixTiles)
            gain, _ = vectors(run, self.operands[0], w, dy[0])
            g = [run.slot(run.apply("product_0_1", run.embed([dy[0], gain])))]
        g, (x0,) = widened(g), widened(x)
        if self.scheme == "fixed":
            return [self._difference(run, run.embed([g[0], x0]), 1).to(x[0].dtype)]
        (direction,), size = unit(run, g, run.layout.d_aux)
        c, inverse = self._scale(run, x0)
        step = run.apply("product_0_1", run.embed([direction, c, x0]))
        slope = self._difference(run, step, 2)
        e = run.apply("product_0_1", run.embed([slope, size, inverse]))
        return [run.slot(run.apply("product_0_2", e)).to(x[0].dtype)]

    def _difference(self, run: LiteralRun, e: Tensor, base: int) -> Tensor:
        return difference(run, e, base, self.fd_step, lambda stepped: run.apply(f"fd_{self._group}", stepped))

    def _scale(self, run: LiteralRun, x: Tensor) -> tuple[Tensor, Tensor]:
        """c and 1/c in every coordinate of a slot: [x, x, 0] -> [x, f(x), 1/c] -> [x f(x), ., 1/c] -> [c, ., 1/c]."""
        e = run.apply(f"fd_inverse_{self._group}", run.embed([x, x]))
        e = run.apply(f"fd_scale_{self._group}", run.apply("product_0_1", e))
        return run.slot(e), run.slot(e, 2)
