"""Parameter counts of a program, from its shapes alone (spec, section 11).

Three counts of the same simulator: by the paper's table; *unrolled*, with structural tensors of its own for every
module; and *unique*, the values that the artefact stores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tintc.ir import simulator as sim
from tintc.ir.core import Program
from tintc.ir.layout import Layout
from tintc.ir.simulator.base import SimOp, TableCount
from tintc.ir.structure import AttentionSpec, Block, TensorSpec, block_tensors, shared_tensors
from tintc.lowering.emit import specs
from tintc.lowering.plan_layout import layout_of


@dataclass(frozen=True)
class ParameterReport:
    """table: by the paper's table; unrolled, unique: see the module; prefixes: embeddings over all weight tiles."""

    table: TableCount
    unrolled: int
    unique: int
    prefixes: int
    layout: Layout


def count_parameters(program: Program) -> ParameterReport:
    """All counts of a planned simulator program. Computes no tensor."""
    return ParameterReport(
        table=table_count(program),
        unrolled=unrolled_count(program),
        unique=unique_count(program),
        prefixes=prefix_count(program),
        layout=layout_of(program),
    )


def table_count(program: Program) -> TableCount:
    """The paper's table over the first pass through the layers; each forward op counts its backward and descent too.

    As in the table, one module stands for a layer whatever its tiles, every layer counts as updated, and what lies
    outside the layers is left out.
    """
    layout, total = layout_of(program), TableCount()
    for op in program.ops:
        if isinstance(op, SimOp) and op.phase == "forward" and op.step == 0 and op.layer >= 0:
            total += op.table_count(layout)
    return total


def unrolled_count(program: Program) -> int:
    """Values of a simulator in which no two modules share a structural tensor; what is stored besides counts once."""
    layout = layout_of(program)
    modules = [block for op in program.ops if isinstance(op, SimOp) for block in op.structure(layout).values()]
    stored = (spec for name, spec in specs(program).items() if not name.startswith("structure."))
    return _numel(stored) + sum(block_count(block, layout) for block in modules)


def block_count(block: Block, layout: Layout) -> int:
    """Values of one block with position matrices and gate of its own."""
    shared = shared_tensors(layout)
    used = list(block_tensors(block.spec).values())
    if isinstance(block.spec, AttentionSpec):
        terms = (block.spec.positions_q, block.spec.positions_k, block.spec.positions_v)
        used += [shared[f"positions.{term.kind}"] for term in terms if term is not None]
    if block.gate:
        used += [shared[f"gates.{block.gate}.{part}"] for part in ("v_old", "v_new")]
    return _numel(used)


def unique_count(program: Program) -> int:
    """Values in the artefact's file."""
    return _numel(specs(program).values())


def prefix_count(program: Program) -> int:
    """Prefix embeddings of all weights: K for every tile."""
    tiles = (op.tiles for op in program.ops if isinstance(op, sim.StoredWeights))
    return layout_of(program).n_prefixes * sum(rows * columns for rows, columns in tiles)


def _numel(tensors: Iterable[TensorSpec]) -> int:
    return sum(math.prod(spec.shape) for spec in tensors)
