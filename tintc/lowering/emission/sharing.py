"""The sharing of structural tensors by modules (construction.md, section 9).

- ``layer``: all modules of a kind share, whatever their layer and step: every block is stored once.
- ``none``: every module of every step has blocks of its own, ``structure.<phase>_<step>.<what it simulates>``.

A block that is not shared by layers has position matrices and a gate of its own too, as in Def. C.1, so that a
simulator compiled with ``none`` stores what the *unrolled* count says. Sharing changes where tensors stand, and never
what they hold: the tiles of a wide layer are always run through one and the same module (Appendix I).
"""

from __future__ import annotations

from dataclasses import dataclass

from tintc.errors import IRError
from tintc.ir.block_specs import AttentionSpec, Positions
from tintc.ir.core import Program
from tintc.ir.names import Names
from tintc.ir.simulator import SimOp
from tintc.ir.structure import StructuralBlock
from tintc.lowering.passes.plan_layout import layout_of
from tintc.option_facts import REUSE
from tintc.options import Options


@dataclass(frozen=True)
class Placed:
    """A block of the artefact, and where its tensors stand below ``structure``.

    name: the block's own; gate: its position gate's (empty: it has none); positions: the matrices of its terms, by
    letter (``q``, ``k``, ``v``).
    """

    name: str
    block: StructuralBlock
    gate: str
    positions: dict[str, str]


def reuse_of(program: Program) -> str:
    """Return which modules share; raise `IRError` if the program says something else."""
    reuse = program.attributes.get("reuse", Options.reuse)
    if reuse not in REUSE:
        raise IRError(
            f"The program's attribute 'reuse' is {reuse!r}; it must be one of {', '.join(REUSE)}. "
            "Compile the model again."
        )
    return reuse


def sites(program: Program) -> dict[SimOp, str]:
    """Return the names of the modules of a planned program that apply blocks:
    ``<phase>_<step>.<what they simulate>``."""
    names = Names()
    layout = layout_of(program)
    modules = [op for op in program.ops if isinstance(op, SimOp) and op.realised(layout)]
    return {op: names.fresh(f"{op.phase}_{op.step}.{op.origin or op.results[0].name}") for op in modules}


Places = dict[SimOp, dict[str, Placed]]
"""Where the blocks of every module stand, by the names that the op's literal form calls them."""


def placement(program: Program) -> Places:
    """Return where every module's blocks stand, by the names that the op's literal form calls them."""
    reuse = reuse_of(program)
    layout = layout_of(program)
    places: Places = {}
    for op, site in sites(program).items():
        scope = site
        if reuse == "layer":
            scope = ""
        places[op] = {name: _place(scope, *built) for name, built in op.realised(layout).items()}
    return places


def _place(scope: str, name: str, block: StructuralBlock) -> Placed:
    """Return where a block stands that the modules of a scope share; an empty scope is the whole simulator."""
    kinds = position_kinds(block)
    gate = f"gates.{block.gate}"
    positions = {letter: f"positions.{kind}" for letter, kind in kinds.items()}
    if scope:
        gate = f"{scope}.gates.{name}"
        name = f"{scope}.{name}"
        positions = {letter: f"{name}.p_{letter}" for letter in kinds}
    if not block.gate:
        gate = ""
    return Placed(name, block, gate, positions)


def position_kinds(block: StructuralBlock) -> dict[str, str]:
    """Return the position matrices that a block's attention adds to q, k and v, by letter."""
    if not isinstance(block.spec, AttentionSpec):
        return {}
    terms: dict[str, Positions | None] = {x: getattr(block.spec, f"positions_{x}") for x in "qkv"}
    return {letter: term.kind for letter, term in terms.items() if term is not None}


def around(placed: Placed) -> dict[str, str]:
    """Return the tensors that a block needs besides its own.

    They are the position matrices and gate vectors that `placed` uses: their names below ``structure``, each with that
    of the entry of `shared_tensors` that holds its values.
    """
    kinds = position_kinds(placed.block)
    tensors = {placed.positions[letter]: f"positions.{kind}" for letter, kind in kinds.items()}
    if placed.gate:
        tensors |= {f"{placed.gate}.{part}": f"gates.{placed.block.gate}.{part}" for part in ("v_old", "v_new")}
    return tensors
