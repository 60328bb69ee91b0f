"""A rule of `canonicalise`: heads that are put together of several values (multi-head latent attention)."""

from __future__ import annotations

from tintc.ir.auxiliary import Activation, Add, Attention, Concat, Gate, Norm, Scale, Select
from tintc.ir.columns import Runs
from tintc.ir.core import Op, Program, Value


def fold_concats(program: Program) -> bool:
    """Rewrite one ``select(concat(a, b, ...))`` as ``select(a) + select(b) + ...``. Return True if there was one.

    Each select has zeros where the other values stand. The concat itself is rewritten alike, where anything else reads
    it.
    """
    producers, users = program.producers(), program.users()
    for index, op in enumerate(program.ops):
        if isinstance(op, Select):
            inner, wanted = producers[op.operands[0]], op.columns
        else:
            inner, wanted = op, ((0, op.result.type.width),) if isinstance(op, Concat) else ()
        if not isinstance(inner, Concat) or (inner is op and _read_by_selects(users, op)):
            continue
        made: list[Op] = []
        total: Value | None = None
        for number, value in enumerate(inner.operands):
            start = sum(other.type.width for other in inner.operands[:number])
            part = Value(f"{op.result.name}.part{number}", op.result.type)
            columns = within(wanted, start, start + value.type.width)
            made.append(Select(operands=(value,), results=(part,), columns=columns))
            if total is not None:
                last = number == len(inner.operands) - 1
                both = op.result if last else Value(f"{op.result.name}.sum{number}", op.result.type)
                made.append(Add(operands=(total, part), results=(both,)))
                part = both
            total = part
        program.ops[index : index + 1] = made
        return True
    return False


def _read_by_selects(users: dict[Value, list[Op]], op: Op) -> bool:
    """Return True if only selects read the op's result."""
    return all(isinstance(user, Select) for user in users.get(op.result, []))


def within(columns: Runs, first: int, last: int) -> Runs:
    """Return those of the columns from `first` to `last`, counted from there, with zeros in place of the others."""
    found: list[tuple[int, int]] = []
    for start, stop in columns:
        a, b = max(start, first), min(stop, last)
        if start < 0 or a >= b:
            found.append((start - stop, 0))
            continue
        found += [(start - a, 0)] if start < a else []
        found.append((a - first, b - first))
        found += [(b - stop, 0)] if b < stop else []
    return tuple(found)


def feeds_scores(users: dict[Value, list[Op]], value: Value) -> bool:
    """Return True if a value reaches queries and keys alone, other linear layers aside: layers that make it never
    descend."""
    found = users.get(value, [])
    return bool(found) and all(
        value not in user.operands[2:] if isinstance(user, Attention) else _hands_on(users, user) for user in found
    )


def _hands_on(users: dict[Value, list[Op]], user: Op) -> bool:
    """Return True if an op hands its operand on to queries and keys alone."""
    return isinstance(user, Activation | Add | Gate | Norm | Scale | Select) and feeds_scores(users, user.result)
