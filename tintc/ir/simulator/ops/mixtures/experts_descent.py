"""`sim.experts_descent`: W_e <- W_e - eta sum_t dy_te x_te^T, b_e <- b_e - eta sum_t dy_te (Def. D.3)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tintc.ir.core import Value, register
from tintc.ir.layout import Layout
from tintc.ir.routed import check_experts, expert_gradients
from tintc.ir.simulator.interface.cost_model import CostModel, Deferral, PendingUpdate
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights, Pending
from tintc.ir.simulator.interface.literal_base import (
    Applied,
    ExpertTiles,
    LiteralRun,
    PrefixTiles,
    RoutedTiles,
    Tiles,
)
from tintc.ir.simulator.interface.semantics import Interpretation, Weights
from tintc.ir.simulator.ops.linear_descent import descent_blocks, descent_tiles
from tintc.ir.simulator.ops.mixtures.experts_base import ExpertsOp
from tintc.ir.simulator.shared.descent_common import DescentOp, per_example
from tintc.ir.simulator.shared.grouped import bias_sums, expert_sums
from tintc.ir.simulator.shared.linear_common import copies_of_bias
from tintc.ir.structure import StructuralBlock


@register("sim.experts_descent")
@dataclass(eq=False, kw_only=True)
class ExpertsDescent(DescentOp, ExpertsOp):
    """(W, r, dy, x) -> W'.

    Claim: the module of `sim.linear_descent`, run once for each expert on that expert's prefixes, gives it. A token
    that has not chosen expert e has dy_e = 0 and adds nothing, so experts that no train token has chosen stay as they
    are. QED. It is exact.
    """

    ROUTES: ClassVar[bool] = True

    def verify(self) -> None:
        self.expect(len(self.operands) == 4, "takes weights, the routing, dy and x")
        w, r, dy, x = self.operands
        check_experts(self, w, r, dy, x)
        self.expect(self.result.type == w.type, "returns weights of the type it takes")

    def interpret(self, run: Interpretation, w: Weights, r: Tensor, dy: Tensor, x: Tensor) -> Weights:
        assert w.weight is not None
        rate = self.factor(run)
        weight, bias = expert_gradients(dy, x, run.inputs.train_mask(self.step)[..., None])
        weight = w.weight - per_example(rate, weight) * weight
        if w.bias is None:
            return Weights(weight, None)
        return Weights(weight, w.bias - per_example(rate, bias) * bias)

    def fused(self, run: FusedRun, w: FusedWeights, r: Tensor, dy: Tensor, x: Tensor) -> FusedWeights:
        """Return the weights with the update pending: carried out, every example had a stack of experts of its own."""
        experts = self.routing(run, r, dy).experts.flatten(1)
        dy = self._summed(run, dy)
        rate = -self.factor(run)
        if isinstance(rate, Tensor):
            dy = (dy * rate.reshape(-1, 1, 1)).to(dy.dtype)
            rate = 1.0
        update = Pending(dy, _vectors(x), self.operands[3], copies_of_bias(self.operands[0].type), rate, experts)
        return replace(w, pending=(*w.pending, update))

    def _summed(self, run: FusedRun, dy: Tensor) -> Tensor:
        """Return dy where the step sums it, else zero, ``[B, n k, dout]``."""
        mask = run.train(dy.shape[1], self.step)
        if mask is not None:
            dy = dy * mask[..., None]
        return dy.flatten(1, 2)

    def updated_parts(self) -> dict[str, tuple[int, ...]]:
        kind = self.operands[0].type
        parts: dict[str, tuple[int, ...]] = {"weight": kind.dims}
        if copies_of_bias(kind):
            parts["bias"] = kind.dims[:2]
        return parts

    def gradient(self, part: str, run: FusedRun, w: FusedWeights, r: Tensor, dy: Tensor, x: Tensor) -> Tensor:
        experts = self.routing(run, r, dy).experts.flatten(1)
        count = self.operands[0].type.dims[0]
        summed = self._summed(run, dy)
        if part == "bias":
            return bias_sums(summed, experts, count)
        return expert_sums(summed, x.flatten(1, 2), experts, count)

    def deferral(self) -> Deferral:
        """Return the update, which is always left pending; it keeps its dY, which stands in the result, and its X."""
        layer = self.target
        if self.sums:
            layer = f"sums.{self.target}"
        return Deferral(layer, (self.operands[3], self.result), always=True)

    def multiply_adds(self, costs: CostModel, w: Value, r: Value, dy: Value, x: Value) -> int:
        costs.pending[self.result] = (*costs.updates(w), PendingUpdate(x, costs.train_end(self.step)))
        return 0

    def entries(self, costs: CostModel, result: Value) -> int:
        """Count the dY of the pending update."""
        return costs.train_end(self.step) * self.operands[2].type.per_token

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        return descent_blocks(layout, copies_of_bias(self.operands[0].type), self.tiles)

    def slots(self, layout: Layout) -> int:
        return 2

    def literal(self, run: LiteralRun, w: ExpertTiles, r: Tiles, dy: RoutedTiles, x: RoutedTiles) -> ExpertTiles:
        copies = copies_of_bias(self.operands[0].type)
        rate = self.factor(run)
        each = zip(w.each, dy, x, strict=True)
        return ExpertTiles([descent_tiles(run, tiles, copies, dy_e, x_e, self.step, rate) for tiles, dy_e, x_e in each])

    def show_literal(self, names: Collection[str], layout: Layout, applied: Sequence[Applied]) -> dict[str, Tensor]:
        """Return gradients and updates, ``[B, E, *part]``, by name."""
        each = [super(ExpertsDescent, self).show_literal(names, layout, part) for part in self._by_expert(applied)]
        return {name: torch.stack([shown[name] for shown in each], 1) for name in names}

    def literal_showing(
        self, result: ExpertTiles, shown: Mapping[str, Tensor], layout: Layout, applied: Sequence[Applied]
    ) -> ExpertTiles:
        changed: list[PrefixTiles] = []
        for expert, (tiles, part) in enumerate(zip(result.each, self._by_expert(applied), strict=True)):
            of_expert = {name: tensor[:, expert] for name, tensor in shown.items()}
            changed.append(super().literal_showing(tiles, of_expert, layout, part))
        return ExpertTiles(changed)

    def _by_expert(self, applied: Sequence[Applied]) -> list[Sequence[Applied]]:
        """Return what each expert's modules gave; they are applied after one another's."""
        experts = self.operands[0].type.dims[0]
        share = len(applied) // experts
        return [applied[expert * share : (expert + 1) * share] for expert in range(experts)]


def _vectors(x: Tensor) -> Tensor:
    """Return ``x [B, n, k, din]`` flat, ``[B, n k, din]``, or ``[B, n, din]`` where all experts of a token read one
    vector."""
    if x.stride(2) == 0:
        return x[:, :, 0]
    return x.flatten(1, 2)
