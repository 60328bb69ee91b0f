"""`sim.norm_descent`: beta <- beta - eta sum_t dy_t (Def. F.5); the gain stays."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from tintc.ir.core import Value, register
from tintc.ir.layout import Layout
from tintc.ir.simulator.base import Interpretation, LiteralRun, PrefixTiles, Tiles, Weights
from tintc.ir.simulator.descent_common import DescentOp
from tintc.ir.simulator.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.fused_counts import FusedCounts
from tintc.ir.simulator.linear_descent import descent_block
from tintc.ir.simulator.norm_common import check_norm, has
from tintc.ir.structure import Block


@register("sim.norm_descent")
@dataclass(eq=False, kw_only=True)
class NormDescent(DescentOp):
    """(W, dy) -> W'. Literally the linear descent without main heads: its bias heads sum dy into prefix 0."""

    def verify(self) -> None:
        self.expect(len(self.operands) == 2, "takes weights and dy")
        check_norm(self, self.operands[0], self.operands[1])
        self.expect(has(self.operands[0], "bias"), "the norm has no bias to descend")
        self.expect(self.result.type == self.operands[0].type, "returns weights of the type it takes")

    def interpret(self, run: Interpretation, *operands: Weights | Tensor) -> Weights:
        w, dy = operands
        assert isinstance(w, Weights) and isinstance(dy, Tensor) and w.bias is not None
        rate = (run.rate(self.target, self.step) * self.rate_scale).reshape(-1, 1)
        return Weights(w.weight, w.bias - rate * (dy * run.inputs.trained(self.step)[..., None]).sum(1))

    def fused(self, run: FusedRun, *operands: FusedWeights | Tensor) -> FusedWeights:
        w, dy = operands
        assert isinstance(w, FusedWeights) and isinstance(dy, Tensor) and w.bias is not None
        mask = run.train(dy.shape[1], self.step)
        rate, summed = run.rate(self.target, self.step) * self.rate_scale, (dy if mask is None else dy * mask).sum(1)
        rate = rate.to(dy.dtype).reshape(-1, 1) if isinstance(rate, Tensor) else rate
        return replace(w, bias=w.bias - rate * summed)

    def entries(self, counts: FusedCounts, result: Value) -> int:
        """The bias of each example."""
        return result.type.width

    def structure(self, layout: Layout) -> dict[str, Block]:
        return {"norm_descent": descent_block(layout, main=False, bias=True)}

    def literal(self, run: LiteralRun, *operands: PrefixTiles | Tiles) -> PrefixTiles:
        w, dy = operands
        assert isinstance(w, PrefixTiles) and isinstance(dy, list)
        rate = run.rate(self.target, self.step) * self.rate_scale
        e = run.embed(dy, w.rows[0][0])
        return PrefixTiles([[run.prefix(run.apply("norm_descent", e, mask=run.train_mask(self.step), rate=rate))]])
