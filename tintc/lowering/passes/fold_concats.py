"""A rule of `canonicalise`: heads that are put together of several values (multi-head latent attention)."""

from __future__ import annotations

from tintc.ir.auxiliary import (
    Activation,
    Add,
    Attention,
    Concat,
    Convolution,
    Gate,
    Norm,
    Pointwise,
    Recurrence,
    Scale,
    Select,
)
from tintc.ir.columns import Runs, folded, unfolded
from tintc.ir.core import Op, Program, Value


def fold_concats(program: Program) -> bool:
    """Rewrite one ``select(concat(a, b, ...))`` as ``select(a) + select(b) + ...``. Return True if there was one.

    Each select has zeros where the other values stand. The concat itself is rewritten alike, where anything else reads
    it.
    """
    producers = program.producers()
    users = program.users()
    for index, op in enumerate(program.ops):
        if isinstance(op, Select):
            inner = producers[op.operands[0]]
            wanted = op.columns
        else:
            inner = op
            wanted = ((0, op.result.type.width),)
        if not isinstance(inner, Concat) or (inner is op and _read_by_selects(users, inner)):
            continue
        terms: list[Op] = []
        total: Value | None = None
        parts = _parts(inner, wanted)
        if len(parts) == 1:
            ((value, columns),) = parts
            program.ops[index] = Select(operands=(value,), results=(op.result,), columns=columns)
            return True
        for number, (value, columns) in enumerate(parts):
            part = Value(f"{op.result.name}.part{number}", op.result.type)
            terms.append(Select(operands=(value,), results=(part,), columns=columns))
            if total is not None:
                both = Value(f"{op.result.name}.sum{number}", op.result.type)
                if number == len(parts) - 1:
                    both = op.result
                terms.append(Add(operands=(total, part), results=(both,)))
                part = both
            total = part
        program.ops[index : index + 1] = terms
        return True
    return False


def _parts(concat: Concat, wanted: Runs) -> list[tuple[Value, Runs]]:
    """Return which columns of each of a concat's operands are wanted, with zeros in place of the others; operands of
    which none is are left out, unless it is so of all."""
    parts: list[tuple[Value, Runs]] = []
    start = 0
    for value in concat.operands:
        parts.append((value, within(wanted, start, start + value.type.width)))
        start += value.type.width
    return [part for part in parts if any(run[0] >= 0 for run in part[1])] or parts[:1]


def _read_by_selects(users: dict[Value, list[Op]], op: Concat | Activation | Convolution | Scale) -> bool:
    """Return True if only selects read the op's result, or what `lift_selects` takes them through."""
    return all(
        isinstance(user, Select)
        or (
            isinstance(user, Activation | Convolution | Scale)
            and bool(users.get(user.result))
            and _read_by_selects(users, user)
        )
        for user in users.get(op.result, [])
    )


def within(columns: Runs, first: int, last: int) -> Runs:
    """Return those of the columns from `first` to `last`, counted from there, with zeros in place of the others."""
    runs: list[tuple[int, int]] = []
    for start, stop in unfolded(columns):
        a = max(start, first)
        b = min(stop, last)
        if start < 0 or a >= b:
            runs.append((start - stop, 0))
            continue
        # A run of zeros of length n is written (-n, 0).
        if start < a:
            runs.append((start - a, 0))
        runs.append((a - first, b - first))
        if b < stop:
            runs.append((b - stop, 0))
    return folded(runs)


def feeds_scores(users: dict[Value, list[Op]], value: Value) -> bool:
    """Return True if a value reaches queries and keys alone, other linear layers aside: layers that make it do not
    descend with the paper's gradient."""
    readers = users.get(value, [])
    return bool(readers) and all(_hands_on(users, user, value) for user in readers)


def _hands_on(users: dict[Value, list[Op]], user: Op, value: Value) -> bool:
    """Return True if an op is an attention or recurrence that takes the value as anything but its values, or hands it
    on to such alone."""
    if isinstance(user, Attention):
        return value not in user.operands[2:]
    if isinstance(user, Recurrence):
        return value is not user.operands[2]
    passed = isinstance(user, Activation | Add | Convolution | Gate | Norm | Pointwise | Scale | Select)
    return passed and feeds_scores(users, user.result)
