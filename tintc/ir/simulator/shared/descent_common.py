"""Shared by the descent modules: the weights they step, the stored rate they use, and what they show."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from tintc.ir.block_specs import TensorSpec
from tintc.ir.core import Type, Value
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.interface.literal_base import Applied, LiteralRun, PrefixTiles, Tile
from tintc.ir.simulator.interface.semantics import Interpretation, Shape
from tintc.ir.simulator.interface.storage import Storage
from tintc.ir.simulator.shared.linear_common import stacked, unstacked


@dataclass(eq=False, kw_only=True)
class DescentOp(SimOp):
    """(W, dy, ...) -> W'. target: name of the weights, whose stored rate is used, times `rate_scale`.

    It shows the gradient of every part that descends, ``[B, *part]`` as the module sums it, and the update: minus the
    gradient times the rate. sums: the first operand are prefixes that sum up minus the gradients, for an optimiser
    that goes on from there (`sim.step`); nothing else differs from a rate of 1, and the update is not the module's.
    """

    STEP_DEPENDENT: ClassVar[bool] = True

    target: str
    rate_scale: float = 1.0
    sums: bool = False

    def factor(self, run: Interpretation | FusedRun | LiteralRun) -> Tensor | float:
        """Return what multiplies the gradient: the rate, or 1 where gradients are summed."""
        if self.sums:
            return self.rate_scale
        return run.rate(self.target, self.step) * self.rate_scale

    def gradient(self, part: str, run: FusedRun, *operands: Any) -> Tensor:
        """Return the gradient of a part ``[B, *part]`` from the operands of the fused form, without `rate_scale`."""
        raise NotImplementedError(self.opname)

    def updated_weight(self) -> str | None:
        if self.sums:
            return None
        return self.target

    def summed_weight(self) -> str | None:
        if self.sums:
            return self.target
        return None

    def stored(self, storage: Storage) -> dict[str, TensorSpec]:
        if self.sums:
            return {}
        return {f"rates.{self.target}": storage.rates()}

    def rates(self) -> tuple[str, ...]:
        if self.sums:
            return ()
        return (self.target,)

    def identity_operand(self) -> Value:
        return self.operands[0]

    def extra_capture_points(self) -> dict[str, Shape]:
        kinds = ("gradients",) if self.sums else ("gradients", "updates")
        return {
            f"{kind}.{self.target}.{part}": ("B", *dims)
            for kind in kinds
            for part, dims in self.updated_parts().items()
        }

    def show_fused(self, names: Collection[str], run: FusedRun, *operands: Any) -> dict[str, Tensor]:
        wanted = [part for part in self.updated_parts() if self._names(part).intersection(names)]
        gradients = {part: self.gradient(part, run, *operands) * self.rate_scale for part in wanted}
        return self._shown(names, gradients, self.factor(run) / self.rate_scale)

    def fused_showing(
        self, run: FusedRun, shown: Mapping[str, Tensor], w: FusedWeights, *operands: Any
    ) -> FusedWeights:
        """Return the weights with the updates that are shown, carried out."""
        missing = [part for part in self.updated_parts() if not self._names(part).intersection(shown)]
        unseen = self.show_fused([f"gradients.{self.target}.{part}" for part in missing], run, w, *operands)
        rate = self.factor(run) / self.rate_scale
        updates = {part: self._update(part, {**shown, **unseen}, rate) for part in self.updated_parts()}
        return with_updates(w, updates)

    def show_literal(self, names: Collection[str], layout: Layout, applied: Sequence[Applied]) -> dict[str, Tensor]:
        """Return gradients and updates, ``[B, *part]``, by name.

        The module's blocks that have a rate give what is subtracted from the prefixes, one tile after the other.
        """
        tiles, rate = self._stepped(layout, applied)
        parts = unstacked(layout, self.operands[0].type, tiles)
        gradients = {part: parts[part] * -self.rate_scale for part in self.updated_parts()}
        return self._shown(names, gradients, rate / self.rate_scale)

    def literal_showing(
        self, result: PrefixTiles, shown: Mapping[str, Tensor], layout: Layout, applied: Sequence[Applied]
    ) -> PrefixTiles:
        """Return the prefixes with the updates that are shown in place of those that the blocks have added."""
        tiles, rate = self._stepped(layout, applied)
        kind = self.operands[0].type
        updates = {part: step * per_example(rate, step) for part, step in unstacked(layout, kind, tiles).items()}
        for part in self.updated_parts():
            if self._names(part).intersection(shown):
                updates[part] = self._update(part, shown, rate / self.rate_scale)
        rows: list[list[Tile]] = []
        for r, row in enumerate(tiles):
            changed: list[Tile] = []
            for c, step in enumerate(row):
                added = step * per_example(rate, step)
                tile = result.rows[r][c]
                assert isinstance(tile, Tensor)
                # The difference is zero but for rounding; gradients of the update that was added cancel in it.
                changed.append(tile + (stacked(layout, kind, updates, r, c) - added))
            rows.append(changed)
        return PrefixTiles(rows)

    def _stepped(self, layout: Layout, applied: Sequence[Applied]) -> tuple[list[list[Tensor]], Tensor | float]:
        """Return what the blocks that have a rate gave the prefixes, by row and column tile, and the rate."""
        stepped = [application for application in applied if application.rate is not None]
        tiles = [application.new[:, : layout.n_prefixes] for application in stepped]
        columns = 1
        if len(tiles) > 1:
            columns = layout.tiles(self.operands[0].type.dims[-1])
        rate = stepped[0].rate
        assert rate is not None
        return [tiles[start : start + columns] for start in range(0, len(tiles), columns)], rate

    def _names(self, part: str) -> frozenset[str]:
        """Return the names of the points of a part."""
        return frozenset((f"gradients.{self.target}.{part}", f"updates.{self.target}.{part}"))

    def _shown(
        self, names: Collection[str], gradients: Mapping[str, Tensor], rate: Tensor | float
    ) -> dict[str, Tensor]:
        """Return the points of these names; an update is made from the gradient that is shown beside it."""
        shown = {f"gradients.{self.target}.{part}": gradient for part, gradient in gradients.items()}
        for part in gradients:
            name = f"updates.{self.target}.{part}"
            if name in names:
                shown[name] = self._update(part, shown, rate)
        return {name: shown[name] for name in names}

    def _update(self, part: str, shown: Mapping[str, Tensor], rate: Tensor | float) -> Tensor:
        """Return the update of a part that is shown, or that the shown gradient makes."""
        update = shown.get(f"updates.{self.target}.{part}")
        if update is not None:
            return update
        gradient = shown[f"gradients.{self.target}.{part}"]
        return gradient * -per_example(rate, gradient)


def parts_of(kind: Type, parts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of parts of weights: a bias has one number for every output."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part in parts:
        shapes[part] = kind.dims
        if part == "bias" and kind.kind != "norm":
            shapes[part] = kind.dims[:-1]
    return shapes


def with_updates(w: FusedWeights, updates: Mapping[str, Tensor]) -> FusedWeights:
    """Return weights with updates ``[B, *part]`` added, by part; what is not there yet begins at zero."""
    weight = w.weight
    bias = w.bias
    for part, update in updates.items():
        if part == "bias":
            bias = plus(bias, update)
        else:
            weight = plus(weight, update)
    return replace(w, weight=weight, bias=bias)


def plus(part: Tensor | None, update: Tensor) -> Tensor:
    """Return their sum; None stands for zero."""
    if part is None:
        return update
    return part + update


def per_example(rate: Tensor | float, value: Tensor) -> Tensor | float:
    """Return a rate ``[]`` or ``[B]`` in the shape and dtype that multiply ``value [B, ...]``."""
    if not isinstance(rate, Tensor):
        return rate
    return rate.to(value.dtype).reshape(-1, *[1] * (value.dim() - 1))
