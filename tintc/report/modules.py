"""One module of a simulator, as the page shows it: what it computes and why, its blocks, slots, prefixes and heads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tintc.analysis.head_roles import Roles
from tintc.analysis.role import Applied, Place, Role
from tintc.analysis.trace import Application, Source
from tintc.ir.columns import StridedRuns
from tintc.ir.layout import Layout
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.shared.linear_common import copies_of_bias, weight_tiles
from tintc.report.proofs import Proof, proof_of

MOST_HEADS = 16
"""Heads of a block that are listed."""
VALUE = re.compile(r"(?P<origin>.*)\.(?P<kind>[fgw])(?P<step>\d+)(-\d+)?(?P<expert>\[\d+\])?$")


@dataclass(frozen=True)
class HeadRow:
    """What one head is for. weights: the part of the auxiliary's weights that it handles, empty if none."""

    head: str
    weights: str
    reads: str
    writes: str


@dataclass(frozen=True)
class PrefixPicture:
    """Where the prefixes hold the weights of a module. tiles: how many, down and across; bias: whether there is one."""

    name: str
    shape: str
    tiles: tuple[int, int]
    bias: bool


@dataclass(frozen=True)
class BlockView:
    """A block that a module applies. times: how often, once for every tile; slots: what the slots of a token hold;
    sees: which positions its heads look at; heads: the first of them, and how many more there are."""

    name: str
    times: int
    slots: tuple[str, ...]
    sees: str
    heads: tuple[HeadRow, ...]
    more: int


@dataclass(frozen=True)
class ModuleView:
    """A module. kind: its op's name; site: where it stands below ``sites`` (empty: it applies no block)."""

    kind: str
    phase: str
    site: str
    proof: Proof
    blocks: tuple[BlockView, ...]
    prefix: PrefixPicture | None


class ModuleReader:
    """Makes views of the modules of one simulator."""

    def __init__(self, roles: Roles) -> None:
        self.roles = roles
        self.layout: Layout = roles.layout
        self._placed = {op: (site, applied) for op, site, applied in roles.modules}

    def view(self, op: SimOp) -> ModuleView:
        """Return what there is to say of a module."""
        site, applied = self._placed.get(op, ("", []))
        blocks = self._blocks(op, applied)
        return ModuleView(op.opname, op.phase, site, proof_of(type(op)), blocks, self._prefix(op, applied))

    def _blocks(self, op: SimOp, applied: Sequence[Applied]) -> tuple[BlockView, ...]:
        """Return the blocks in the order in which they are first applied; tiles after the first are counted."""
        rows = list(self.roles.rows_of(op))
        first: dict[str, Applied] = {}
        times: dict[str, int] = {}
        for one in applied:
            first.setdefault(one.placed.name, one)
            times[one.placed.name] = times.get(one.placed.name, 0) + 1
        views: list[BlockView] = []
        for name, one in first.items():
            own = [row for row in rows if row.block == name]
            own = own[: max(1, len(own) // times[name])]
            heads = tuple(_head_row(row) for row in own[:MOST_HEADS])
            contents = _slots(one.application, self.layout)
            views.append(BlockView(name, times[name], contents, _seen(own), heads, len(own) - len(heads)))
        return tuple(views)

    def _prefix(self, op: SimOp, applied: Sequence[Applied]) -> PrefixPicture | None:
        """Return where the weights stand that a module reads; None if it reads none."""
        held = next((one.application.held for one in applied if one.application.held is not None), None)
        if held is None:
            return None
        value = self.roles.values[held.weights]
        kind = value.type
        rows, columns = weight_tiles(self.layout, value)
        shape = " x ".join(map(str, kind.dims))
        if kind.kind == "norm":
            shape = f"the diagonal of {kind.width} x {kind.width}"
            if "vector" in kind.parts:
                shape = f"a vector of {kind.width}"
        return PrefixPicture(short(held.weights), shape, (rows, columns), copies_of_bias(kind) > 0)


def _seen(rows: Iterable[Role]) -> str:
    """Return which positions the heads of a block look at; empty for a block that mixes no positions."""
    seen = (place.at for row in rows for place in row.reads if place.as_ in ("key", "value"))
    return " and ".join(dict.fromkeys(f"the {at.removeprefix('the ')}" for at in seen))


def short(name: str) -> str:
    """Return what a value of the program is, in few words: ``gradient from up_proj`` for ``model.....up_proj.g0``."""
    match = VALUE.match(name)
    if match is None:
        return name.rpartition("tables.")[2].removesuffix(".weight").rpartition(".")[2] or name
    parts = [part for part in match["origin"].split(".") if not part.isdigit()]
    label = parts[-1] + (match["expert"] or "")
    if match["kind"] == "g":
        return f"gradient from {label}"
    return label


def _slots(application: Application, layout: Layout) -> tuple[str, ...]:
    """Return what stands in every slot of a token's embedding, empty where nothing does."""
    names = [" + ".join(_source(source, layout) for source in sources) for sources in application.contents]
    return (*names, *[""] * (layout.n_slots - len(names)))


def _source(source: Source, layout: Layout) -> str:
    name, tile = source
    if isinstance(name, int):
        return f"result of block {name + 1}"
    if tile:
        return f"{short(name)}, tile {tile}"
    return short(name)


def _head_row(row: Role) -> HeadRow:
    weights = ""
    if row.parameter:
        weights = f"rows {_runs(row.rows)}"
        if row.columns:
            weights += f", columns {_runs(row.columns)}"
    head = "all" if row.head < 0 else str(row.head)
    return HeadRow(head, weights, "; ".join(_places(row.reads)), "; ".join(_places(row.writes)))


def _places(places: Iterable[Place]) -> Iterable[str]:
    """Yield in words what a head reads or writes."""
    for place in places:
        what = _named(place.of)
        numbers = _runs(place.numbers)
        if place.at == "prefixes":
            what = "the weights"
            numbers = ""
        text = what
        if numbers:
            text += f" [{numbers}]"
        if place.as_ and place.as_ != "result":
            text = f"{place.as_}: {text}"
        yield text


def _named(of: str) -> str:
    """Return names of values, and of what earlier blocks made, in words."""
    words: list[str] = []
    for name in of.split(" + "):
        if name.startswith("#"):
            words.append(f"block {int(name[1:]) + 1}")
        elif name:
            words.append(short(name))
    return " + ".join(words) or "its slot"


def _runs(runs: StridedRuns) -> str:
    """Return numbers in words: ``0-191``, ``0, 3, ... 573``."""
    texts: list[str] = []
    for start, stop, step in runs[:3]:
        last = start + (stop - 1 - start) // step * step
        if last == start:
            texts.append(str(start))
        elif step == 1:
            texts.append(f"{start}-{last}")
        else:
            texts.append(f"{start}, {start + step}, ... {last}")
    if len(runs) > 3:
        texts.append("...")
    return "; ".join(texts)
