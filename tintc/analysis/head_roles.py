"""The ground truth of a simulator: the purpose of each of its heads and gates.

A row for every module and head: its phase and step, the auxiliary's parameter and the part of it that the head handles,
what it reads and what it writes. Rows are derived from what is built: the literal form says which blocks a module
applies to what (`tintc.analysis.trace`), and the blocks' own tensors what their heads read and write
(`tintc.analysis.head_io`). Heads that return zero whatever they are given have no row.

`Roles.to_json` is compact: what heads do stands once per block (``heads``), what blocks are applied to per module
(``modules``); `Roles.rows` puts the two together.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor

from tintc.analysis.head_io import Head, heads_of
from tintc.analysis.owner import Index, Owner
from tintc.analysis.owners import Owners
from tintc.analysis.place_names import PlaceNames
from tintc.analysis.role import (
    FIELDS,
    Applied,
    Place,
    Role,
    compact,
    compact_head,
    fits,
    held_part,
    numbers_of,
    of_expert,
)
from tintc.analysis.trace import Application, applications
from tintc.errors import OptionError
from tintc.ir.core import Parameter, Program, Value
from tintc.ir.layout import Layout
from tintc.ir.simulator import KeptWeights, SimOp
from tintc.lowering.emission.sharing import Placed, placement, sites
from tintc.lowering.passes.plan_layout import layout_of

VERSION = 1


class Roles:
    """All roles of a planned simulator program, in the program's order."""

    def __init__(self, program: Program):
        self.layout: Layout = layout_of(program)
        self.values: dict[str, Value] = {value.name: value for op in program.ops for value in op.results}
        self.names = {op.result.name: _layer_of(op) for op in program.ops if _layer_of(op)}
        self._places = PlaceNames(self.layout, self.values, self.names)
        self._program = program
        self._heads: dict[Any, tuple[Head, ...]] = {}
        blocks = placement(program)
        self.modules: list[tuple[SimOp, str, list[Applied]]] = [
            (op, site, [self._placed(applied, blocks[op]) for applied in applications(op, self.layout)])
            for op, site in sites(program).items()
        ]

    def _placed(self, application: Application, blocks: dict[str, Placed]) -> Applied:
        """Return an application with the block as it is built; its heads are worked out once for all alike."""
        placed = blocks[application.block]
        occupied = frozenset(slot for slot, sources in enumerate(application.contents) if sources)
        held = application.held is not None
        key = (application.block, occupied, held, application.mask)
        if key not in self._heads:
            self._heads[key] = heads_of(placed.block, self.layout, occupied, held, application.mask)
        return Applied(application, placed, self._heads[key])

    def __iter__(self) -> Iterator[Role]:
        return self.rows()

    def rows(self, **wanted: Any) -> Iterator[Role]:
        """Return an iterator over the rows whose fields are as wanted.

        Texts are patterns with ``*`` and ``?``: ``rows(phase="descent", parameter="*.mlp.*")``. Raises `OptionError`
        for a field that roles do not have, and at the end for a text that no row has there.
        """
        unknown = [name for name in wanted if name not in FIELDS]
        if unknown:
            raise OptionError(f"Roles have no field {unknown[0]!r}; choose of {', '.join(FIELDS)}.")
        return self._fitting(wanted)

    def rows_of(self, module: SimOp) -> Iterator[Role]:
        """Return an iterator over the rows of one module, which has none where it applies no block."""
        for op, site, blocks in self.modules:
            if op is module:
                for applied in blocks:
                    yield from self._rows(op, site, applied)

    def owner(self, tensor: str, index: int | Sequence[int]) -> Owner:
        """Return what the number at `index` of a stored tensor is, by the tensor's name in the state dict.

        Raises `OptionError` for a tensor that is not stored, and for an index that it does not have.
        """
        return self._owners.owner(tensor, index)

    def elements(self, role: Role) -> dict[str, Tensor]:
        """Return the stored numbers of a role: indices ``[n, dimensions]``, by tensor.

        They are those of its head, and those of the auxiliary that it handles, as they are before any step. All
        numbers of position matrices belong to all heads, and are not among them.
        """
        elements = self._owners.of_head(role.block, role.head)
        name, _, expert = role.parameter.partition("[")
        if name:
            rows, columns = (numbers_of(runs) for runs in (role.rows, role.columns))
            elements |= self._owners.of_weights(name, int(expert.rstrip("]") or -1), rows, columns)
        return elements

    def of(self, owner: Owner) -> Iterator[Role]:
        """Return an iterator over the roles that have a number among their `elements`."""
        if owner.block:
            yield from (role for role in self._by_block[owner.block] if role.head in owner.heads or role.head < 0)
        elif owner.part == "gate":
            yield from self._by_block[owner.tensor.removeprefix("structure.").rpartition(".")[0]]
        else:
            for role in self._by_parameter[f"{owner.parameter}{of_expert(owner.expert)}"]:
                if owner.row in numbers_of(role.rows) and (
                    owner.column < 0 or owner.column in numbers_of(role.columns)
                ):
                    yield role

    def stored(self, parameter: str, entry: Sequence[int]) -> list[tuple[str, Index]]:
        """Return every ``(tensor, index)`` at which a number of the auxiliary is stored, by the parameter's name in the
        program; `OptionError` if it is nowhere."""
        places = self._owners.stored(parameter, tuple(entry))
        if not places:
            raise OptionError(_why_not_stored(self._program.parameters.get(parameter), parameter, entry))
        return places

    @cached_property
    def _owners(self) -> Owners:
        heads: dict[str, set[Head]] = defaultdict(set)
        for _, _, blocks in self.modules:
            for applied in blocks:
                heads[applied.placed.name].update(applied.heads)
        return Owners(self._program, heads)

    @cached_property
    def _by_block(self) -> dict[str, list[Role]]:
        rows: dict[str, list[Role]] = defaultdict(list)
        for role in self:
            rows[role.block].append(role)
        return rows

    @cached_property
    def _by_parameter(self) -> dict[str, list[Role]]:
        rows: dict[str, list[Role]] = defaultdict(list)
        for role in self:
            rows[role.parameter].append(role)
        return rows

    def _fitting(self, wanted: dict[str, Any]) -> Iterator[Role]:
        """Yield the rows whose fields are as wanted; raise `OptionError` for a text that no row has."""
        none = True
        for op, site, blocks in self.modules:
            for applied in blocks:
                for role in self._rows(op, site, applied):
                    if fits(role, wanted):
                        none = False
                        yield role
        texts = {name: value for name, value in wanted.items() if none and isinstance(value, str)}
        for name, value in texts.items():
            if not any(fits(role, {name: value}) for role in self):
                raise OptionError(f"No role has the {name} {value!r}; sim.roles() gives all, one after the other.")

    def _rows(self, op: SimOp, site: str, applied: Applied) -> Iterator[Role]:
        base = Role(site, applied.placed.name, -1, op.phase, op.step, op.layer, "", (), (), None, (), ())
        for head in applied.heads:
            role = self._role(base, applied, head)
            if role is not None:
                yield role
        if applied.placed.gate:
            open_at = "prefixes" if applied.placed.block.gate == "update" else "tokens"
            writes = (Place("result", open_at, -1, "", ()),)
            yield replace(base, block=applied.placed.gate, phase="gate", writes=writes)

    def _role(self, base: Role, applied: Applied, head: Head) -> Role | None:
        reads = [self._places.read(applied, part) for part in head.reads]
        writes = [place for part in head.writes for place in self._places.written(applied, part)]
        held = applied.application.held
        at_prefixes = [part for part in (*head.reads, *head.writes) if part.at == "prefixes"]
        if held is None or held.computed or head.index < 0 or not at_prefixes:
            return replace(base, head=head.index, reads=tuple(reads), writes=tuple(writes))
        kind = self.values[held.weights].type
        name = self.names[held.weights]
        parts = [held_part(self.layout, kind, held.row, held.column, part) for part in at_prefixes]
        named = [part for part in parts if part[1]]
        if not named:
            return None
        part, rows, columns = named[0]
        tile = (held.row, held.column)
        return replace(
            base,
            head=head.index,
            parameter=f"{name}.{part}{of_expert(held.expert)}",
            rows=rows,
            columns=columns,
            tile=tile,
            reads=tuple(reads),
            writes=tuple(writes),
        )

    def to_json(self) -> str:
        """Return the compact form; the same program gives the same text."""
        heads: dict[tuple[Head, ...], int] = {}
        modules = []
        for op, site, blocks in self.modules:
            applies = [compact(applied, heads.setdefault(applied.heads, len(heads))) for applied in blocks]
            modules.append({"site": site, "phase": op.phase, "step": op.step, "layer": op.layer, "applies": applies})
        table = [[compact_head(head) for head in of_block] for of_block in heads]
        weights = {name: layer for name, layer in self.names.items() if layer}
        whole = {"version": VERSION, "layout": self.layout.to_attributes(), "weights": weights, "heads": table}
        return json.dumps(whole | {"modules": modules}, separators=(",", ":")) + "\n"


def _layer_of(op: Any) -> str:
    """Return the auxiliary's layer whose weights an op makes, below ``sums`` if they are sums of its gradients; empty
    if it makes none."""
    if not isinstance(op, SimOp):
        return ""
    if summed := op.summed_weight():
        return f"sums.{summed}"
    if isinstance(op, KeptWeights):
        return op.name
    return op.stored_weight() or op.updated_weight() or ""


def _why_not_stored(known: Parameter | None, name: str, entry: Sequence[int]) -> str:
    """Return the sentence that says why a number of a parameter (None: there is none so called) is stored nowhere."""
    if known is None:
        return f"There is no parameter {name!r}; sim.program.parameters has the names of all."
    if len(entry) != len(known.shape) or any(not 0 <= at < known.shape[dim] for dim, at in enumerate(entry)):
        return f"{name} has shape {list(known.shape)}, and so no number at {list(entry)}."
    return f"The number of {name} at {list(entry)} is not stored."
