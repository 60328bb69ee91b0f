"""One head's role: what it is of, what it reads and what it writes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from tintc.analysis.head_io import Head, SlotRange
from tintc.analysis.trace import Application
from tintc.ir.columns import StridedRuns, strided_runs_of
from tintc.ir.core import Type
from tintc.ir.layout import Layout
from tintc.ir.simulator.shared.linear_common import matrix_sides
from tintc.lowering.emission.sharing import Placed


@dataclass(frozen=True)
class Place:
    """Numbers that a head reads or writes.

    as_: ``query``, ``key``, ``value`` or ``result``; at: ``tokens``, ``prefixes``, or the tokens that the mask lets it
    see; slot: of the embedding, -1 for all of it (a gate's); of: the value or parameter that stands there (``a + b``
    for a sum, ``#2`` for what the module's third block made, ``a[3]`` for that of expert 3); numbers: of it, rows of a
    matrix.
    """

    as_: str
    at: str
    slot: int
    of: str
    numbers: StridedRuns


@dataclass(frozen=True)
class Role:
    """The role of one head of one module.

    site: the module, below ``sites``; block: its tensors, below ``structure``; head: its index there, -1 for a block
    without heads or a gate; phase: forward, loss, backward, descent or gate; step: the pass or gradient step; layer: of
    the auxiliary, -1 outside; parameter: the auxiliary's, as the program names it (empty: none; ``up.weight[3]`` for
    that of expert 3); rows, columns: the part of it (runs ``start, stop, step``; of vectors there are only rows); tile:
    the weight tile (row, column).
    """

    site: str
    block: str
    head: int
    phase: str
    step: int
    layer: int
    parameter: str
    rows: StridedRuns
    columns: StridedRuns
    tile: tuple[int, int] | None
    reads: tuple[Place, ...]
    writes: tuple[Place, ...]


FIELDS = tuple(field.name for field in fields(Role))


@dataclass(frozen=True)
class Applied:
    """A block where it is applied: the application, the block as it is built, what its heads do."""

    application: Application
    placed: Placed
    heads: tuple[Head, ...]


def held_part(
    layout: Layout, kind: Type, row: int, column: int, part: SlotRange
) -> tuple[str, StridedRuns, StridedRuns]:
    """Return (name, rows, columns) of what numbers of the prefixes hold of a weight tile (`linear_common`,
    `norm_common`).

    Prefix k holds row ``k*S + s`` of the tile at slot s, and prefix 0 the bias at slot S; of a norm, rows of the
    diagonal of its gain, or the gain itself at slot 0 of prefix 0.
    """
    dout, din = matrix_sides(kind)
    pitch = layout.pitch
    if part.slot == layout.stack:
        biased = any(name.startswith("bias") for name in kind.parts)
        return "bias", shifted(part.numbers, row * pitch, dout) if biased else (), ()
    if part.slot > layout.stack:
        return "", (), ()
    columns = shifted(part.numbers, column * pitch, din)
    if "vector" in kind.parts:
        return "gain", columns if part.slot == 0 else (), ()
    rows = shifted(((part.slot, pitch, layout.stack),), row * pitch, dout)
    if kind.kind != "norm":
        return "weight", rows if columns else (), columns
    diagonal = [range(*run) for run in columns]
    common = [number for run in rows for number in range(*run) if any(number in other for other in diagonal)]
    return "gain", strided_runs_of(common) if "gain" in kind.parts else (), ()


def of_expert(expert: int) -> str:
    """Return ``[3]`` for expert 3, nothing where there are none."""
    if expert < 0:
        return ""
    return f"[{expert}]"


def expert_and_tile(layout: Layout, kind: Type, tile: int) -> tuple[int, int]:
    """Return whose tile of a value it is, -1 where there are no experts, and its number among theirs."""
    if kind.kind != "routed":
        return -1, tile
    return divmod(tile, layout.tiles(kind.width))


def numbers_of(runs: StridedRuns) -> list[int]:
    """Return all numbers of runs."""
    return [number for run in runs for number in range(*run)]


def shifted(runs: StridedRuns, offset: int, width: int) -> StridedRuns:
    """Return runs of a tile's numbers as those of the whole value, which is `width` wide."""
    moved = (range(start + offset, min(stop + offset, width), step) for start, stop, step in runs)
    return tuple((run.start, run[-1] + 1, run.step) for run in moved if run)


def fits(role: Role, wanted: dict[str, Any]) -> bool:
    """Return True if the role's fields are as wanted."""
    for name, value in wanted.items():
        field = getattr(role, name)
        matches = field == value
        if isinstance(value, str):
            matches = fnmatchcase(field, value)
        if not matches:
            return False
    return True


def compact(applied: Applied, heads: int) -> dict[str, Any]:
    """Return one application as JSON: contents of every slot as ``[value, tile]`` or ``[application, slot]`` of this
    module; feeds alike."""
    application = applied.application
    held = application.held
    compact: dict[str, Any] = {"block": applied.placed.name, "heads": heads, "slots": application.contents}
    if held is not None:
        compact["tile"] = [held.weights, held.row, held.column]
        if held.expert >= 0:
            compact["expert"] = held.expert
    if applied.placed.gate:
        compact["gate"] = applied.placed.gate
    if application.feeds:
        compact["feeds"] = {str(slot): targets for slot, targets in application.feeds.items()}
    if application.steps:
        compact["steps"] = application.steps
    return compact


def compact_head(head: Head) -> dict[str, Any]:
    def shown(part: SlotRange) -> list[Any]:
        return [part.as_, part.at, part.slot, *part.numbers]

    return {"head": head.index, "reads": [shown(p) for p in head.reads], "writes": [shown(p) for p in head.writes]}
