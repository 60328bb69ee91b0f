"""`sim.step`: the step that an optimiser makes of summed gradients."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tintc.ir.block_specs import TensorSpec
from tintc.ir.core import Value, register
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.cost_model import CostModel, Deferral
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.interface.literal_base import Applied, ExpertTiles, LiteralRun, PrefixTiles, Tile
from tintc.ir.simulator.interface.semantics import Interpretation, Shape, Weights
from tintc.ir.simulator.interface.storage import Storage
from tintc.ir.simulator.ops.linear_descent import materialise
from tintc.ir.simulator.shared.descent_common import parts_of, per_example, plus, with_updates
from tintc.ir.simulator.shared.linear_common import bias_dims, main_part, stacked, unstacked
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
    written_out,
)
from tintc.ir.structure import StructuralBlock

Held = PrefixTiles | ExpertTiles


@register("sim.step")
@dataclass(eq=False, kw_only=True)
class Step(SimOp):
    """(W, sums[, 1 / norm][, W_0]) -> W + rate (sums / norm + decay (W_0 - W)).

    target: name of the weights, whose stored rate is used; parts: those that descend; normalised: whether there is a
    norm; decay: 0 without W_0, the stored weights. Sums hold minus the gradients.

    Claim: every tile of W' is that tile of W, and by residual connections the same tile of the sums times ``rate /
    norm``, of W_0 times ``rate decay`` and of W times ``-rate decay``. The factors that are known when compiling (1,
    decay and -decay) are those of `times_block`; rate and 1 / norm multiply the module's result as the rate of a
    descent does, 1 / norm being a number that a slot holds: a product of two values (construction.md, section 2.5).
    W_0 and W are equal where nothing descends. QED. It is exact.
    """

    STEP_DEPENDENT: ClassVar[bool] = True

    target: str
    parts: tuple[str, ...]
    normalised: bool = False
    decay: float = 0.0

    def verify(self) -> None:
        count = 2 + self.normalised + bool(self.decay)
        self.expect(len(self.operands) == count, f"takes {count} operands")
        weights = [value for value in self.operands if value.type.kind != "number"]
        self.expect(all(value.type == self.result.type for value in weights), "weights and sums have one type")
        number = self.operands[2].type.kind == "number" if count > 2 else False
        self.expect(self.normalised == number, "the third operand is 1 / norm where the step is normalised")

    def updated_weight(self) -> str:
        return self.target

    def updated_parts(self) -> dict[str, tuple[int, ...]]:
        return parts_of(self.result.type, self.parts)

    def stored(self, storage: Storage) -> dict[str, TensorSpec]:
        return {f"rates.{self.target}": storage.rates()}

    def rates(self) -> tuple[str, ...]:
        return (self.target,)

    def extra_capture_points(self) -> dict[str, Shape]:
        return {f"updates.{self.target}.{part}": ("B", *dims) for part, dims in self.updated_parts().items()}

    def _factors(self, run: Interpretation | FusedRun, inverse: Tensor | None) -> tuple[Factor, Factor]:
        """Return what multiplies the sums, and ``W_0 - W``."""
        rate = run.rate(self.target, self.step)
        factor = rate
        if inverse is not None:
            factor = inverse * rate
        return factor, rate * self.decay

    def _rest(self, rest: Sequence[Any]) -> tuple[Any, Any]:
        """Return 1 / norm and W_0, None for what is not there."""
        inverse = None
        start = None
        if self.normalised:
            inverse = rest[0]
        if self.decay:
            start = rest[-1]
        return inverse, start

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

    def show_fused(self, names: Collection[str], run: FusedRun, *operands: Any) -> dict[str, Tensor]:
        w, sums, *rest = operands
        inverse, start = self._rest(rest)
        factor, decay = self._factors(run, inverse)
        kind = self.result.type
        examples = run.inputs.shape[0]
        updates = written_out(times(sums, factor), kind, examples)
        if start is not None:
            away = self._away(w, start, examples)
            updates |= {part: plus(updates.get(part), a * per_example(decay, a)) for part, a in away.items()}
        shown: dict[str, Tensor] = {}
        for part, dims in self.updated_parts().items():
            name = f"updates.{self.target}.{part}"
            if name in names:
                shown[name] = updates.get(part, torch.zeros(examples, *dims, dtype=self._dtype(w)))
        return shown

    def _dtype(self, w: FusedWeights) -> torch.dtype:
        tensor = w.weight if w.weight is not None else w.bias
        assert tensor is not None
        return tensor.dtype

    def _away(self, w: FusedWeights, start: FusedWeights, examples: int) -> dict[str, Tensor]:
        """Return ``W_0 - W`` of every part that descends, ``[B, *part]``."""
        kind = self.result.type
        pending = written_out(FusedWeights(None, None, w.pending), kind, examples)
        away: dict[str, Tensor] = {}
        for part, dims in self.updated_parts().items():
            key = "bias" if part == "bias" else "weight"
            apart = getattr(start, key) - getattr(w, key)
            apart = apart.expand(examples, *apart.shape[apart.dim() - len(dims) :])
            if part in pending:
                apart = apart - pending[part]
            away[part] = apart
        return away

    def fused_showing(
        self, run: FusedRun, shown: Mapping[str, Tensor], w: FusedWeights, *operands: Any
    ) -> FusedWeights:
        names = [f"updates.{self.target}.{part}" for part in self.updated_parts()]
        unseen = self.show_fused([name for name in names if name not in shown], run, w, *operands)
        both = {**unseen, **shown}
        return with_updates(w, {part: both[name] for part, name in zip(self.updated_parts(), names, strict=True)})

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

    def show_literal(self, names: Collection[str], layout: Layout, applied: Sequence[Applied]) -> dict[str, Tensor]:
        each = [unstacked(layout, self.result.type, tiles) for tiles in self._added(layout, applied)]
        shown: dict[str, Tensor] = {}
        for part in self.updated_parts():
            name = f"updates.{self.target}.{part}"
            if name not in names:
                continue
            shown[name] = each[0][part]
            if self.result.type.kind == "experts":
                shown[name] = torch.stack([parts[part] for parts in each], 1)
        return shown

    def literal_showing(
        self, result: Held, shown: Mapping[str, Tensor], layout: Layout, applied: Sequence[Applied]
    ) -> Held:
        """Return the prefixes with the updates that are shown in place of those that the blocks have added."""
        kind = self.result.type
        changed: list[PrefixTiles] = []
        for expert, (tiles, added) in enumerate(zip(each_of(result), self._added(layout, applied), strict=True)):
            updates = unstacked(layout, kind, added)
            for part in self.updated_parts():
                of_part = shown.get(f"updates.{self.target}.{part}")
                if of_part is not None:
                    updates[part] = of_part[:, expert] if kind.kind == "experts" else of_part
            rows: list[list[Tile]] = []
            for r, row in enumerate(added):
                made: list[Tile] = []
                for c, step in enumerate(row):
                    tile = tiles.rows[r][c]
                    assert isinstance(tile, Tensor)
                    made.append(tile + (stacked(layout, kind, updates, r, c) - step))
                rows.append(made)
            changed.append(PrefixTiles(rows))
        return like(result, changed)

    def _added(self, layout: Layout, applied: Sequence[Applied]) -> Iterator[list[list[Tensor]]]:
        """Yield what was added to the prefixes of every expert, by row and column tile."""
        kind = self.result.type
        terms = 1 + 2 * bool(self.decay)
        experts = kind.dims[0] if kind.kind == "experts" else 1
        tiles: list[Tensor] = []
        for start in range(0, len(applied), terms):
            group = applied[start : start + terms]
            parts = [one.new[:, : layout.n_prefixes] * per_example(_rate_of(one), one.new) for one in group]
            tiles.append(sum(parts[1:], parts[0]))
        columns = 1
        if kind.kind != "norm":
            columns = layout.tiles(kind.dims[-1])
        share = len(tiles) // experts
        for expert in range(experts):
            own = tiles[expert * share : (expert + 1) * share]
            yield [own[start : start + columns] for start in range(0, share, columns)]


def _there(parts: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Return the parts that are there."""
    return {part: tensor for part, tensor in parts.items() if tensor is not None}


def _rate_of(applied: Applied) -> Tensor | float:
    """Return the rate of a block that has one."""
    assert applied.rate is not None
    return applied.rate


def _same_memory(a: Tensor, b: Tensor | None) -> bool:
    """Return True if both are views of the same numbers."""
    return b is not None and a.shape == b.shape and a.data_ptr() == b.data_ptr()
