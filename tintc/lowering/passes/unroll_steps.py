"""`unroll_steps`: turn `sim.repeat` into straight-line code, the body once per step, weights handed from each to the
next.

Names end in what they are: ``.f0`` forward before any update ... ``.fN`` the last one, ``.g0`` gradients of step 0,
``.w0`` stored weights, ``.w1`` after the first step.
"""

from __future__ import annotations

from dataclasses import replace

from tintc.ir import simulator as sim
from tintc.ir.core import Op, Program, Value, substitute
from tintc.ir.names import Names

SUFFIXES = {"forward": "f", "loss": "g", "backward": "g", "descent": "w"}


def unroll_steps(program: Program) -> Program:
    """Return the program without `sim.repeat`; every op carries its step."""
    program.verify()
    names = Names()
    ops: list[Op] = []
    mapping: dict[Value, Value] = {}
    step = 0
    for op in program.ops:
        if not isinstance(op, sim.Repeat):
            ops.append(_copy(op, mapping, names, step))
            continue
        carried = dict(zip(op.body.arguments, substitute(op.operands, mapping), strict=True))
        for index in range(op.count):
            inner = mapping | carried
            ops.extend(_copy(nested, inner, names, index) for nested in op.body.ops)
            carried = dict(zip(op.body.arguments, substitute(op.body.yields, inner), strict=True))
        mapping.update(zip(op.results, carried.values(), strict=True))
        step = op.count
    outputs = {label: mapping[value] for label, value in program.outputs.items()}
    return replace(program, ops=ops, outputs=outputs).verify()


def _copy(op: Op, mapping: dict[Value, Value], names: Names, step: int) -> Op:
    """Return the op for one step, with operands and results renamed; add its results to `mapping`."""
    assert isinstance(op, sim.SimOp)
    # The descent of step s makes the weights after s + 1 steps.
    suffix = f"{SUFFIXES[op.phase]}{step + (op.phase == 'descent')}"
    if isinstance(op, sim.StoredWeights | sim.KeptWeights | sim.Zeros):
        suffix = "w0"
    results = tuple(Value(names.fresh(f"{op.origin}.{suffix}"), result.type) for result in op.results)
    operands = substitute(op.operands, mapping)
    mapping.update(zip(op.results, results, strict=True))
    return replace(op, operands=operands, results=results, step=step)
