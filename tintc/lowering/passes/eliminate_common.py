"""`eliminate_common`: merge ops that compute the same from the same, and drop ops that nobody needs.

- Two ops of one kind with the same operands and attributes (where they come from aside) are one. So layers below the
  updated ones run once, and the forward pass of the first step is the one that gives `logits_before`.
- An op whose results no op and no output uses is dropped.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from tintc.ir.core import Op, Program, Value, substitute
from tintc.ir.liveness import needed_ops
from tintc.ir.simulator import SimOp

PROVENANCE = frozenset({"origin", "phase", "step", "layer", "role", "write"})


def eliminate_common(program: Program) -> Program:
    """Return the program without common and dead ops."""
    program.verify()
    seen: dict[Hashable, Op] = {}
    mapping: dict[Value, Value] = {}
    ops: list[Op] = []
    for op in program.ops:
        op = replace(op, operands=substitute(op.operands, mapping))
        first = seen.setdefault(_key(op), op)
        if first is op:
            ops.append(op)
        else:
            mapping.update(zip(op.results, first.results, strict=True))
    outputs = {label: mapping.get(value, value) for label, value in program.outputs.items()}
    return replace(program, ops=needed_ops(ops, outputs.values()), outputs=outputs).verify()


def _key(op: Op) -> Hashable:
    """Return a key that is equal for ops that compute the same.

    The step is a part of it for ops that read what belongs to their step, and outside of forward passes, where only the
    step's train tokens are run.
    """
    step = 0
    if isinstance(op, SimOp) and (op.STEP_DEPENDENT or op.phase != "forward"):
        step = op.step
    attributes = tuple((name, value) for name, value in op.attributes().items() if name not in PROVENANCE)
    return op.opname, op.operands, attributes, step
