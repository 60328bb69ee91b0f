"""`sim.step`: the step that an optimiser makes of summed gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from tintc.ir.core import Value, register
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.cost_model import CostModel, Deferral
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.interface.literal_base import LiteralRun, PrefixTiles, Tile
from tintc.ir.simulator.interface.semantics import Interpretation, Weights
from tintc.ir.simulator.ops.linear_descent import materialise
from tintc.ir.simulator.ops.optimisers.shown_step import Held, ShownStep
from tintc.ir.simulator.shared.descent_common import per_example, with_updates
from tintc.ir.simulator.shared.linear_common import bias_dims, main_part
from tintc.ir.simulator.shared.sums import (
    Factor,
    each_of,
    held_sums,
    joined,
    like,
    scaled,
    times,
    times_block,
    times_name,
)
from tintc.ir.structure import StructuralBlock


@register("sim.step")
@dataclass(eq=False, kw_only=True)
class Step(ShownStep):
    """(W, sums[, 1 / norm][, W_0]) -> W + rate (sums / norm + decay (W_0 - W)).

    target: name of the weights, whose stored rate is used; parts: those that descend; normalised: whether there is a
    norm; decay: 0 without W_0, the stored weights. Sums hold minus the gradients.

    Claim: every tile of W' is that tile of W, and by residual connections the same tile of the sums times ``rate /
    norm``, of W_0 times ``rate decay`` and of W times ``-rate decay``. The factors that are known when compiling (1,
    decay and -decay) are those of `times_block`; rate and 1 / norm multiply the module's result as the rate of a
    descent does, 1 / norm being a number that a slot holds: a product of two values (construction.md, section 2.5).
    W_0 and W are equal where nothing descends. QED. It is exact.
    """

    def interpret(self, run: Interpretation, w: Weights, sums: Weights, *rest: Any) -> Weights:
        inverse, start = self._rest(rest)
        factor, decay = self._factors(run, inverse)
        examples = run.inputs.shape[0]

        def stepped(part: str, dims: int, of: Weights) -> Tensor | None:
            key = "bias" if part == "bias" else "weight"
            here, total = getattr(of, key), getattr(sums, key)
            if part not in self.parts:
                return here
            total = total.expand(examples, *total.shape[total.dim() - dims :])
            here = here + per_example(factor, total) * total
            if start is None:
                return here
            away = getattr(start, key) - getattr(of, key)
            away = away.expand(examples, *away.shape[away.dim() - dims :])
            return here + per_example(decay, away) * away

        kind = self.result.type
        return Weights(stepped(main_part(kind), len(kind.dims), w), stepped("bias", bias_dims(kind), w))

    def fused(self, run: FusedRun, w: FusedWeights, sums: FusedWeights, *rest: Any) -> FusedWeights:
        """Return the weights with the step pending or carried out, as the plan says."""
        inverse, start = self._rest(rest)
        factor, decay = self._factors(run, inverse)
        if start is not None:
            w = self._decayed(run, w, start, decay)
        step = times(sums, factor)
        kind = self.result.type
        w = with_updates(w, _there({main_part(kind): step.weight, "bias": step.bias}))
        if kind.kind == "experts" or run.lazy(self):
            return replace(w, pending=joined((*w.pending, *step.pending)))
        for update in step.pending:
            w = materialise(w, update, run.frees(self, self.operands[0]))
        return w

    def _decayed(self, run: FusedRun, w: FusedWeights, start: FusedWeights, decay: Factor) -> FusedWeights:
        """Return the weights drawn towards those of the start, pending updates included."""
        keep: Factor = 1 - decay
        pending = tuple(scaled(update, keep) for update in w.pending)

        def part(here: Tensor | None, there: Tensor | None) -> Tensor | None:
            if here is None or _same_memory(here, there):
                return here
            assert there is not None
            away = there - here
            return here + away * per_example(decay, away)

        weight = w.weight
        if main_part(self.result.type) in self.parts:
            weight = part(w.weight, start.weight)
        return FusedWeights(weight, part(w.bias, start.bias), pending, owned=w.owned or weight is not w.weight)

    def deferral(self) -> Deferral | None:
        """Return the update, which keeps nothing but what the sums keep; None for a norm, whose sums are small."""
        if self.result.type.kind == "norm":
            return None
        return Deferral(self.target, (), always=self.result.type.kind == "experts")

    def multiply_adds(self, costs: CostModel, w: Value, sums: Value, *rest: Value) -> int:
        updates = costs.updates(sums)
        if self.result.type.kind == "norm":
            return 0
        if self in costs.lazy or self.result.type.kind == "experts":
            costs.pending[self.result] = tuple(dict.fromkeys((*costs.updates(w), *updates)))
            return 0
        dout, din = self.result.type.dims
        return sum(update.train for update in updates) * dout * din

    def entries(self, costs: CostModel, result: Value) -> int:
        """Count per-example weights, or the dY of pending updates, each with its rate in it."""
        kind = result.type
        if kind.kind == "norm":
            return len(self.parts) * kind.width
        if self in costs.lazy:
            return sum(update.train for update in costs.updates(result)) * kind.dims[-2]
        return kind.dims[-2] * kind.dims[-1]

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        blocks = times_block(layout, 1.0)
        if self.decay:
            blocks |= times_block(layout, self.decay) | times_block(layout, -self.decay)
        return blocks

    def literal(self, run: LiteralRun, w: Held, sums: Held, *rest: Any) -> Held:
        inverse, start = self._rest(rest)
        rate = run.rate(self.target, self.step)
        factor = rate
        if inverse is not None:
            factor = run.first(inverse) * rate
        starts: list[PrefixTiles] | list[None] = [None] * len(each_of(w))
        if start is not None:
            starts = each_of(start)

        def stepped(tile: Tile, total: Tile, first: Tile | None) -> Tensor:
            terms = [run.apply(times_name(1.0), run.embed([], total), rate=factor)]
            if first is not None:
                terms.append(run.apply(times_name(self.decay), run.embed([], first), rate=rate))
                terms.append(run.apply(times_name(-self.decay), run.embed([], tile), rate=rate))
            return run.added(tile, terms)

        each: list[PrefixTiles] = []
        for tiles, totals, firsts in zip(each_of(w), each_of(sums), starts, strict=True):
            rows: list[list[Tile]] = []
            for r, row in enumerate(held_sums(tiles, self.result.type)):
                first = [None] * len(row) if firsts is None else firsts.rows[r]
                rows.append([stepped(tile, totals.rows[r][c], first[c]) for c, tile in enumerate(row)])
            each.append(PrefixTiles(rows))
        return like(w, each)


def _there(parts: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Return the parts that are there."""
    return {part: tensor for part, tensor in parts.items() if tensor is not None}


def _same_memory(a: Tensor, b: Tensor | None) -> bool:
    """Return True if both are views of the same numbers."""
    return b is not None and a.shape == b.shape and a.data_ptr() == b.data_ptr()
