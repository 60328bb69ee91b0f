"""`plan_layout`: choose the layout and write it into the program: stacking, shards, tiles (construction.md, section
3.1).

The cheapest of the layouts in `candidates` is taken.
"""

from __future__ import annotations

from dataclasses import fields, replace

from tintc.errors import IRError
from tintc.ir import simulator as sim
from tintc.ir.core import Op, Program
from tintc.ir.layout import Layout
from tintc.lowering.passes.layout_candidates import survey
from tintc.options import Options


def plan_layout(program: Program, options: Options, max_length: int) -> Program:
    """Return the program with its layout attribute, and with `tiles` on every op that holds or reads weights.

    Raises `OptionError`, naming the condition that fails, when the wanted S and S' are not feasible.
    """
    program.verify()
    layout = choose_layout(program, options, max_length)
    ops = [_tiled(op, layout) for op in program.ops]
    attributes = program.attributes | {"layout": layout.to_attributes()}
    return replace(program, ops=ops, attributes=attributes).verify()


def layout_of(program: Program) -> Layout:
    """Return the layout that planning wrote into the program; raise `IRError` if it is not there, or not a layout."""
    try:
        return Layout.from_attributes(program.attributes["layout"])
    except (KeyError, TypeError) as error:
        names = ", ".join(f.name for f in fields(Layout))
        raise IRError(f"The program has no layout; its attribute 'layout' must have {names}.") from error


def choose_layout(program: Program, options: Options, max_length: int) -> Layout:
    """Return the cheapest feasible layout with what `options` fix.

    Raises `OptionError`, naming the conditions that fail, if there is none.
    """
    return survey(program, options, max_length).chosen.layout


def _tiled(op: Op, layout: Layout) -> Op:
    if isinstance(op, sim.SimOp):
        return op.with_tiles(layout)
    return op
