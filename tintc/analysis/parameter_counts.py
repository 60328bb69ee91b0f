"""Parameter counts of a program, from its shapes alone (construction.md, section 11).

Three counts of the same simulator: by the paper's table; *unrolled*, with structural tensors of its own for every
module; and *unique*, the values that the artefact stores. The last depends on what modules share
(`tintc.lowering.emission.sharing`) and is the second where they share nothing; steps that share nothing count in the
first too.
`module_counts` splits all three by module kind, layer and phase.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tintc.ir import simulator as sim
from tintc.ir.block_specs import TensorSpec
from tintc.ir.core import Program
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.storage import TableCount, attention_cost, split_cost
from tintc.ir.simulator.shared.linear_common import count_tiles
from tintc.ir.structure import StructuralBlock, block_tensors, shared_tensors
from tintc.lowering.emission.emit import specs, storage_of
from tintc.lowering.emission.sharing import Placed, around, placement, position_kinds, reuse_of
from tintc.lowering.passes.plan_layout import layout_of

PHASES = ("forward", "backward", "descent")
NOTHING = TableCount()


@dataclass(frozen=True)
class ParameterReport:
    """Counts of parameters. table: by the paper's table; unrolled, unique: see the module; prefixes: embeddings over
    all weight tiles."""

    table: TableCount
    unrolled: int
    unique: int
    prefixes: int
    layout: Layout


@dataclass(frozen=True)
class ModuleCount:
    """The three counts of one kind of module, in one layer and phase.

    kind: ``linear``, ``norm``, ``attention``, ..., or what is stored: ``weights``, ``embedding``, ``logits``; layer: -1
    outside the layers, None for tensors that modules of several layers share; phase: forward, backward or descent.
    """

    kind: str
    layer: int | None
    phase: str
    table: int
    unrolled: int
    unique: int


def count_parameters(program: Program) -> ParameterReport:
    """Return all counts of a planned simulator program. Computes no tensor."""
    return ParameterReport(
        table=table_count(program),
        unrolled=unrolled_count(program),
        unique=unique_count(program),
        prefixes=prefix_count(program),
        layout=layout_of(program),
    )


def table_count(program: Program) -> TableCount:
    """Return the counts by the paper's table, which gives every layer modules of its own that all steps share.

    As in the table, one module stands for a layer whatever its tiles, every layer counts as updated, and what lies
    outside the layers is left out. Where steps do not share (reuse ``none``), the modules of every step count.
    """
    return sum(_tables(program).values(), NOTHING)


def _tables(program: Program) -> dict[SimOp, TableCount]:
    """Return the count of every forward op: its own module and, where a step follows it, its backward and descent
    too."""
    layout = layout_of(program)
    n_steps = program.attributes["n_steps"]
    shared = reuse_of(program) != "none"
    counts: dict[SimOp, TableCount] = {}
    for op in program.ops:
        if isinstance(op, SimOp) and op.phase == "forward" and op.layer >= 0 and (op.step == 0 or not shared):
            counts[op] = op.table_count(layout)
            if op.step == n_steps:
                counts[op] = TableCount(counts[op].forward)
    return counts


def transformer_block(layout: Layout) -> TableCount:
    """Return the table's last row, a block of attention and a feed-forward with two norms: seven attention modules."""
    q = attention_cost(layout)
    extra = layout.d_sim * layout.n_heads
    return TableCount(7 * q + split_cost(layout), 7 * q + 6 * extra, 7 * q)


def module_counts(program: Program) -> list[ModuleCount]:
    """Return every count, split; the sums are those of `table_count`, `unrolled_count` and `unique_count`.

    A tensor that several modules use is counted, as unique, with the first of them whose kind its block is named after
    (norms apply blocks of linear modules too), or else with the first.
    """
    layout = layout_of(program)
    storage = storage_of(program)
    tensors = specs(program)
    places = placement(program)
    counts: dict[tuple[str, int | None, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    users: dict[str, list[SimOp]] = defaultdict(list)
    named: dict[str, SimOp] = {}
    tables = _tables(program)
    for op in program.ops:
        if not isinstance(op, SimOp):
            continue
        placed = places.get(op, {})
        for block, place in placed.items():
            for name in tensors_of(place):
                users[name].append(op)
                if block.startswith(f"{_kind(op)}_") and name.startswith(f"structure.{place.name}."):
                    named.setdefault(name, op)
        for name in op.stored(storage):
            users[name].append(op)
        built = {place.name: place.block for place in placed.values()}
        counts[_kind(op), op.layer, op.phase][1] += sum(block_count(block, layout) for block in built.values())
        for phase in PHASES:
            counts[_kind(op), op.layer, phase][0] += getattr(tables.get(op, NOTHING), phase)
    for name, spec in tensors.items():
        first = named.get(name, users[name][0])
        layer = first.layer
        if any(op.layer != layer for op in users[name]):
            layer = None
        row = counts[_kind(first), layer, first.phase]
        row[2] += math.prod(spec.shape)
        if not name.startswith("structure."):
            row[1] += math.prod(spec.shape)
    return [ModuleCount(*key, *row) for key, row in counts.items() if any(row)]


def _kind(op: SimOp) -> str:
    """Return an op's kind, e.g. ``linear`` for ``sim.linear_forward``."""
    name = op.opname.removeprefix("sim.")
    for phase in ("forward", "backward", "descent"):
        name = name.removesuffix(f"_{phase}")
    return name


def tensors_of(placed: Placed) -> Iterator[str]:
    """Yield the state-dict names of the tensors that a block uses."""
    yield from (f"structure.{placed.name}.{part}" for part in block_tensors(placed.block.spec))
    yield from (f"structure.{name}" for name in around(placed))


def unrolled_count(program: Program) -> int:
    """Count the values of a simulator in which no two modules share a structural tensor; what is stored besides counts
    once."""
    layout = layout_of(program)
    modules = [block for op in program.ops if isinstance(op, SimOp) for block in op.blocks(layout).values()]
    stored = (spec for name, spec in specs(program).items() if not name.startswith("structure."))
    return _numel(stored) + sum(block_count(block, layout) for block in modules)


def block_count(block: StructuralBlock, layout: Layout) -> int:
    """Count the values of one block with position matrices, one for every term, and gate of its own."""
    names = [f"positions.{kind}" for kind in position_kinds(block).values()]
    names += [f"gates.{block.gate}.{part}" for part in ("v_old", "v_new") if block.gate]
    shared = shared_tensors(layout)
    return _numel([*block_tensors(block.spec).values(), *(shared[name] for name in names)])


def unique_count(program: Program) -> int:
    """Count the values in the artefact's file."""
    return _numel(specs(program).values())


def prefix_count(program: Program) -> int:
    """Count the prefix embeddings of all weights: K for every tile, of every expert."""
    layout = layout_of(program)
    stored = (op.result.type for op in program.ops if isinstance(op, sim.StoredWeights))
    return layout.n_prefixes * sum(count_tiles(layout, kind) for kind in stored)


def _numel(tensors: Iterable[TensorSpec]) -> int:
    return sum(math.prod(spec.shape) for spec in tensors)
