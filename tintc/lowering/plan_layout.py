"""Chooses the layout and writes it into the program: stacking, shards, tiles (spec, section 3).

A candidate is a pair (S, S') with a chunk width d_h that is a multiple of every attention head's width (so that heads
are chunks) and a slot width that S divides. The cheapest feasible one is taken, by an estimate of literal
multiply-adds.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace

from tintc.errors import IRError, OptionError
from tintc.ir import simulator as sim
from tintc.ir.core import Op, Program
from tintc.ir.layout import Layout
from tintc.ir.simulator.linear_common import copies_of_bias
from tintc.lowering.options import Options

MOST_SHARDS = 8


def plan_layout(program: Program, options: Options, max_length: int) -> Program:
    """The program with its layout attribute, and with `tiles` on every op that holds or reads weights.

    Raises `OptionError`, naming the condition that fails, when the wanted S and S' are not feasible.
    """
    program.verify()
    layout = choose_layout(program, options, max_length)
    ops = [_tiled(op, layout) for op in program.ops]
    attributes = program.attributes | {"layout": layout.to_attributes()}
    return replace(program, ops=ops, attributes=attributes).verify()


def layout_of(program: Program) -> Layout:
    """The layout that planning wrote into the program; `IRError` if it is not there, or not a layout."""
    try:
        return Layout.from_attributes(program.attributes["layout"])
    except (KeyError, TypeError) as error:
        names = ", ".join(f.name for f in fields(Layout))
        raise IRError(f"The program has no layout; its attribute 'layout' must have {names}.") from error


def choose_layout(program: Program, options: Options, max_length: int) -> Layout:
    candidates, errors = [], []
    for shards in [options.shards] if options.shards else range(1, MOST_SHARDS + 1):
        for stack in [options.stack] if options.stack else [shards]:
            try:
                candidates.append(candidate(program, stack, shards, max_length))
            except OptionError as error:
                errors.append(error)
    if not candidates:
        raise errors[0]
    return min(candidates, key=literal_cost)


def candidate(program: Program, stack: int, shards: int, max_length: int) -> Layout:
    """The narrowest layout with this S and S'; `OptionError` if a condition of section 3 fails."""
    width = program.attributes["width"]
    ops = [op for op in program.ops if isinstance(op, sim.SimOp)]
    head_dims = set().union(*(op.head_dims() for op in ops))
    bias = any(_has_bias(op) for op in ops)
    unit = math.lcm(*head_dims, stack // math.gcd(stack, shards))
    d_h = -(-width // (shards * unit)) * unit
    if program.attributes["semantics"] == "paper-code" and shards * d_h != width:
        raise OptionError(
            f"S' = {shards} does not divide the width {width} into chunks of whole heads, which the semantics "
            "paper-code needs; choose another number of shards or the semantics exact."
        )
    heads = stack * shards + (shards if bias else 0)
    layout = Layout(width, stack, shards, d_h, heads, max_length)
    slots = max(op.slots(layout) for op in ops)
    layout = replace(layout, n_heads=max(heads, slots * shards))
    return layout.check(bias, slots, head_dims)


def literal_cost(layout: Layout) -> int:
    """Multiply-adds of one linear module on a text of full length: six split stages and two score products."""
    length, d_sim = layout.sim_seq_len, layout.d_sim
    return length * d_sim * (layout.d_h + 5 * layout.n_heads) + 2 * length**2 * d_sim


def _has_bias(op: sim.SimOp) -> bool:
    return isinstance(op, sim.StoredWeights) and copies_of_bias(op.result.type) > 0


def _tiled(op: Op, layout: Layout) -> Op:
    return op.planned(layout) if isinstance(op, sim.SimOp) else op
