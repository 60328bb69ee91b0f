"""Rules of `canonicalise` for selects: equal ones are joined, others merged, swapped with what they read, dropped."""

from __future__ import annotations

from dataclasses import replace

from tintc.ir.auxiliary import Activation, Convolution, Scale, Select
from tintc.ir.columns import Runs, compose
from tintc.ir.core import Op, Program, Value, substitute
from tintc.ir.functions import GATES_ONLY
from tintc.lowering.passes.fold_selects import rows_of, word_for
from tintc.lowering.passes.rewrites import drop_op, remove_dead_code


def join_equal_selects(program: Program) -> bool:
    """Let all users of equal selects read the first of them. Return True if there were any."""
    known: dict[tuple[Value, Runs], Value] = {}
    again: dict[Value, Value] = {}
    for op in program.ops:
        if isinstance(op, Select):
            first = known.setdefault((op.operands[0], op.columns), op.result)
            if first is not op.result:
                again[op.result] = first
    program.ops = [
        replace(op, operands=substitute(op.operands, again)) for op in program.ops if not again.keys() & set(op.results)
    ]
    return bool(again)


def merge_selects(program: Program) -> bool:
    """Merge one select of a select. Return True if there was one."""
    producers = program.producers()
    for index, op in enumerate(program.ops):
        if isinstance(op, Select) and isinstance(inner := producers[op.operands[0]], Select):
            columns = compose(inner.columns, op.columns)
            program.ops[index] = Select(operands=inner.operands, results=op.results, columns=columns)
            return True
    return False


def lift_selects(program: Program) -> bool:
    """Swap one scale, activation or convolution with the selects that read it. Return True if there was one."""
    producers = program.producers()
    users = program.users()
    for index, op in enumerate(program.ops):
        if not isinstance(op, Select):
            continue
        inner = producers[op.operands[0]]
        if not isinstance(inner, Scale | Activation | Convolution) or inner.result in program.outputs.values():
            continue
        if isinstance(inner, Activation) and inner.fn in GATES_ONLY:
            continue
        if isinstance(inner, Convolution) and any(run[0] < 0 for run in op.columns):
            continue  # its bias is not zero where the select's columns are
        if all(isinstance(user, Select) for user in users[inner.result]):
            if isinstance(inner, Convolution):
                inner = _rows_of_convolution(program, inner, op, users)
            part = Value(f"{op.result.name}.part", op.result.type)
            first = replace(op, operands=inner.operands, results=(part,))
            program.ops[index : index + 1] = [first, replace(inner, operands=(part,), results=op.results)]
            remove_dead_code(program)
            return True
    return False


def _rows_of_convolution(
    program: Program, convolution: Convolution, part: Select, users: dict[Value, list[Op]]
) -> Convolution:
    """Return the convolution of the channels that a select takes."""
    parts = [user for user in users[convolution.result] if isinstance(user, Select)]
    parts.sort(key=lambda other: other.columns[0])
    word = word_for(users, part, parts.index(part))
    weight = rows_of(program, convolution.weight, part.columns, word)
    bias = convolution.bias
    if bias:
        bias = rows_of(program, bias, part.columns, word)
    return replace(convolution, weight=weight, bias=bias)


def drop_full_selects(program: Program) -> bool:
    """Drop one select of all columns. Return True if there was one."""
    for op in program.ops:
        if isinstance(op, Select) and compose(((0, op.operands[0].type.width),), op.columns) == _all(op.operands[0]):
            drop_op(program, op, op.operands[0])
            return True
    return False


def _all(value: Value) -> Runs:
    """Return the runs of all columns of a value."""
    return ((0, value.type.width),)
