"""The updates of an optimiser's step as capture points: shown, and taken from somebody who has changed them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tintc.ir.block_specs import TensorSpec
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.interface.literal_base import Applied, ExpertTiles, PrefixTiles, Tile
from tintc.ir.simulator.interface.semantics import Interpretation, Shape
from tintc.ir.simulator.interface.storage import Storage
from tintc.ir.simulator.shared.descent_common import parts_of, per_example, plus, with_updates
from tintc.ir.simulator.shared.linear_common import stacked, unstacked
from tintc.ir.simulator.shared.sums import Factor, each_of, like, times, written_out

Held = PrefixTiles | ExpertTiles


@dataclass(eq=False, kw_only=True)
class ShownStep(SimOp):
    """A step of weights, by what it is of and what it shows of itself: the update of every part that descends.

    Of the literal form it is what the blocks have added to the prefixes: for every tile one block for the sums, and two
    for the decay, if there is any.
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


def _rate_of(applied: Applied) -> Tensor | float:
    """Return the rate of a block that has one."""
    assert applied.rate is not None
    return applied.rate
