"""A rule of `canonicalise`: heads that are put together of several values (multi-head latent attention)."""

from __future__ import annotations

from tintc.ir.auxiliary import Activation, Add, Attention, Concat, Gate, Norm, Scale, Select
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
        if not isinstance(inner, Concat) or (inner is op and _read_by_selects(users, op)):
            continue
        terms: list[Op] = []
        total: Value | None = None
        for number, value in enumerate(inner.operands):
            start = sum(other.type.width for other in inner.operands[:number])
            part = Value(f"{op.result.name}.part{number}", op.result.type)
            columns = within(wanted, start, start + value.type.width)
            terms.append(Select(operands=(value,), results=(part,), columns=columns))
            if total is not None:
                both = Value(f"{op.result.name}.sum{number}", op.result.type)
                if number == len(inner.operands) - 1:
                    both = op.result
                terms.append(Add(operands=(total, part), results=(both,)))
                part = both
            total = part
        program.ops[index : index + 1] = terms
        return True
    return False


def _read_by_selects(users: dict[Value, list[Op]], op: Op) -> bool:
    """Return True if only selects read the op's result."""
    return all(isinstance(user, Select) for user in users.get(op.result, []))


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
    """Return True if a value reaches queries and keys alone, other linear layers aside: layers that make it never
    descend."""
    readers = users.get(value, [])
    return bool(readers) and all(_hands_on(users, user, value) for user in readers)


def _hands_on(users: dict[Value, list[Op]], user: Op, value: Value) -> bool:
    """Return True if an op is an attention that takes the value as query or key alone, or hands it on to such alone."""
    if isinstance(user, Attention):
        return value not in user.operands[2:]
    return isinstance(user, Activation | Add | Gate | Norm | Scale | Select) and feeds_scores(users, user.result)
