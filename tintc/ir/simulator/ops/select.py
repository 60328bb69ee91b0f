"""`sim.select` and `sim.select_backward`: columns of a value in another order, and their gradient."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from torch import Tensor

from tintc.ir.columns import Runs, fits, put_back, take, unfolded
from tintc.ir.core import register
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.interface.storage import TableCount, split_cost
from tintc.ir.simulator.shared.matrix_stages import Ones, matrix_blocks, matrix_product, ones_by_tile
from tintc.ir.structure import StructuralBlock


@cache
def _ones(columns: Runs, transposed: bool) -> tuple[tuple[int, int], ...]:
    """Return ``(to, from)`` of every column that is taken; transposed: exchanged."""
    places: list[tuple[int, int]] = []
    to = 0
    for start, stop in unfolded(columns):
        if start >= 0:
            places += [(to + i, start + i) for i in range(stop - start)]
        to += stop - start
    if transposed:
        return tuple((source, to) for to, source in places)
    return tuple(places)


@cache
def _ones_by_tile(columns: Runs, transposed: bool, pitch: int) -> Ones:
    """Return the ones of M by its tiles."""
    return ones_by_tile(_ones(columns, transposed), pitch)


@dataclass(eq=False, kw_only=True)
class _Columns(SimOp):
    """A matrix M of zeros and ones, tile by tile.

    Claim: the result is ``M x``, since it is that of `matrix_product` for the ones of M. QED. It is exact.
    """

    TRANSPOSED: ClassVar[bool]

    columns: tuple[tuple[int, ...], ...]

    def ones(self) -> tuple[tuple[int, int], ...]:
        """Return ``(to, from)`` of every one in M."""
        return _ones(self.columns, self.TRANSPOSED)

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        return matrix_blocks(layout, self._name, _ones_by_tile(self.columns, self.TRANSPOSED, layout.pitch))

    @property
    def _name(self) -> str:
        """Return the name of its blocks: their tensors depend on the columns, so the name does too."""
        key = f"{self.opname} {self.columns}"
        return f"select_{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def literal(self, run: LiteralRun, x: Tiles) -> Tiles:
        tiles = _ones_by_tile(self.columns, self.TRANSPOSED, run.layout.pitch)
        return matrix_product(run, self._name, tiles, x, run.layout.tiles(self.result.type.width))

    def table_count(self, layout: Layout) -> TableCount:
        """Count the split operations it consists of: the table has no row for it."""
        return TableCount(split_cost(layout), split_cost(layout), 0)


@register("sim.select")
@dataclass(eq=False, kw_only=True)
class Select(_Columns):
    """(x) -> its `columns` side by side, zeros for negative ones: M has a one at (i, column i)."""

    TRANSPOSED = False

    def verify(self) -> None:
        (x,) = self.operands
        self.expect(fits(self.columns, x.type.width, self.result.type.width), f"columns {self.columns} of {x.type}")

    def interpret(self, run: Interpretation, x: Tensor) -> Tensor:
        return take(x, self.columns)

    def fused(self, run: FusedRun, x: Tensor) -> Tensor:
        return take(x, self.columns)


@register("sim.select_backward")
@dataclass(eq=False, kw_only=True)
class SelectBackward(_Columns):
    """(dy) -> dx: every column receives the sum of what was taken from it.

    `Select` is ``y = M x``, so ``dx = M^T dy``: the same `columns`, (to, from) exchanged. QED.
    """

    TRANSPOSED = True

    def verify(self) -> None:
        (dy,) = self.operands
        self.expect(fits(self.columns, self.result.type.width, dy.type.width), f"columns {self.columns} give {dy.type}")

    def interpret(self, run: Interpretation, x: Tensor) -> Tensor:
        return put_back(x, self.columns, self.result.type.width)

    def fused(self, run: FusedRun, x: Tensor) -> Tensor:
        return put_back(x, self.columns, self.result.type.width)
