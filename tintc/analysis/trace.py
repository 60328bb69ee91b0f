"""The literal form of an op run on names in place of numbers: which blocks a module applies to what.

So nothing is written down twice: an op's literal form itself says which blocks it applies, in which order, to which
slots and tile, under which mask, and where the results go.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch

from tintc.ir.core import Value
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.literal_base import ExpertTiles, PrefixTiles, literal
from tintc.ir.simulator.shared.linear_common import weight_tiles

Source = tuple[str | int, int]
"""A tile of a value, by the value's name, or a slot of what an earlier application gave, by the application's index.

Tiles of a routed value are counted through all experts."""


@dataclass(frozen=True)
class Held:
    """A weight tile in the prefixes. expert: whose, -1 if there is one layer for all tokens; by: the application whose
    output carries it, if any; computed: whether that application has put something else into its place."""

    weights: str
    row: int
    column: int
    expert: int = -1
    by: int = -1
    computed: bool = False


@dataclass
class Application:
    """One block applied once. contents: what every slot of the tokens holds; held: the tile in the prefixes; mask: who
    is seen (empty: everybody); feeds: what slots of the result become a part of, values or slots of what the module
    applies later; steps: the weights whose tile its prefixes become."""

    block: str
    contents: tuple[tuple[Source, ...], ...]
    held: Held | None
    mask: str
    feeds: dict[int, list[Source]] = field(default_factory=dict)
    steps: str = ""


class Named:
    """A tensor that only knows what it was made from."""

    dtype = torch.float64

    def __init__(self, sources: Iterable[Source] = ()):
        self.sources = frozenset(sources)

    def _with(self, other: Any) -> Named:
        if not isinstance(other, Named):
            return self
        return Named(self.sources | other.sources)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _with

    def to(self, *_: Any) -> Named:
        return self

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Named:
        """Return a tensor made from nothing for zeros; raise `NotImplementedError` for any other function."""
        if function is not torch.zeros_like:
            raise NotImplementedError(f"literal forms are traced through {function}; say here what it is made from")
        return Named()


@dataclass(frozen=True)
class Embedded:
    """An embedding: slots of the tokens, and the tile in the prefixes."""

    slots: tuple[Named, ...]
    held: Held | None


class TraceRun:
    """A `LiteralRun` on names."""

    inputs: Any = SimpleNamespace(input_ids=None)

    def __init__(self, layout: Layout, gated: Collection[str]):
        """Note which blocks have a gate: one without replaces prefixes too."""
        self.layout = layout
        self.gated = gated
        self.applied: list[Application] = []

    def embed(self, slots: Sequence[Named], prefix: Held | None = None) -> Embedded:
        return Embedded(tuple(slots), prefix)

    def apply(self, block: str, e: Embedded, mask: str | None = None, rate: Any = None) -> Embedded:
        index = len(self.applied)
        contents = tuple(tuple(sorted(slot.sources, key=str)) for slot in e.slots)
        for at, sources in enumerate(contents):
            for source, slot in sources:
                if isinstance(source, int):
                    self.applied[source].feeds.setdefault(slot, []).append((index, at))
        self.applied.append(Application(block, contents, e.held, mask or ""))
        held = e.held
        if held is not None:
            held = replace(held, by=index, computed=held.computed or block not in self.gated)
        return Embedded(tuple(Named({(index, slot)}) for slot in range(self.layout.n_slots)), held)

    def slot(self, e: Embedded, index: int = 0) -> Named:
        return e.slots[index]

    def prefix(self, e: Embedded) -> Held | None:
        return e.held

    def first(self, x: Sequence[Named]) -> float:
        return 1.0

    def added(self, tile: Held, terms: Sequence[Embedded]) -> Held:
        assert terms[0].held is not None
        return replace(tile, by=terms[0].held.by)

    def train_mask(self, step: int) -> str:
        return "train tokens"

    def token_mask(self, window: int = 0) -> str:
        return "earlier tokens"

    def real_tokens(self) -> float:
        return 1.0

    def next_mask(self) -> str:
        return "the next token"

    def counted_mask(self, step: int) -> str:
        return "the token itself"

    def rate(self, name: str, step: int) -> float:
        return 1.0

    def look_up(self, table: str, rows: Any) -> Named:
        return Named({(f"tables.{table}", 0)})


def applications(op: SimOp, layout: Layout) -> list[Application]:
    """Return the blocks that a module applies, in order."""
    gated = {name for name, block in op.structure(layout).items() if block.gate}
    run: Any = TraceRun(layout, gated)
    results = literal(op, run, [_operand(value, layout) for value in op.operands])
    if len(op.results) == 1:
        results = (results,)
    for value, tiles in zip(op.results, results, strict=True):
        if isinstance(tiles, PrefixTiles):
            _note_step(run.applied, value, tiles)
        elif isinstance(tiles, ExpertTiles):
            for of_expert in tiles.each:
                _note_step(run.applied, value, of_expert)
        elif value.type.kind == "routed":
            _note(run.applied, value, [tile for of_expert in tiles for tile in of_expert])
        else:
            _note(run.applied, value, tiles)
    return run.applied


def _operand(value: Value, layout: Layout) -> Any:
    """Return a value as the traced literal form takes it: tiles of token values, or weight tiles."""
    kind = value.type
    if kind.kind == "tokens":
        return [Named({(value.name, tile)}) for tile in range(layout.tiles(kind.width))]
    if kind.kind == "number":
        return [Named({(value.name, 0)})]
    if kind.kind == "routed":
        count = layout.tiles(kind.width)
        starts = range(0, kind.dims[0] * count, count)
        return [[Named({(value.name, tile)}) for tile in range(start, start + count)] for start in starts]
    if kind.kind == "experts":
        return ExpertTiles([_weight_tiles(value, layout, expert) for expert in range(kind.dims[0])])
    return _weight_tiles(value, layout, -1)


def _weight_tiles(value: Value, layout: Layout, expert: int) -> PrefixTiles:
    rows, columns = weight_tiles(layout, value)
    if "vector" in value.type.parts:
        rows = columns = 1
    tiles: Any = [[Held(value.name, r, c, expert) for c in range(columns)] for r in range(rows)]
    return PrefixTiles(tiles)


def _note_step(applied: list[Application], value: Value, tiles: PrefixTiles) -> None:
    """Note in the applications whose prefixes become weights which weights these are."""
    for held in (tile for row in tiles.rows for tile in row):
        assert isinstance(held, Held)
        applied[held.by].steps = value.name


def _note(applied: list[Application], value: Value, tiles: Sequence[Named]) -> None:
    """Note in the applications that they feed the tiles of a result."""
    for tile, named in enumerate(tiles):
        for source, slot in sorted(named.sources, key=str):
            if isinstance(source, int):
                applied[source].feeds.setdefault(slot, []).append((value.name, tile))
