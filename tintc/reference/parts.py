"""`parts_read`: which columns of an activation are differentiated together."""

from __future__ import annotations

from tintc.ir.auxiliary import Activation, Convolution, Scale, Select
from tintc.ir.columns import unfolded
from tintc.ir.core import Op, Program, Value

Parts = tuple[tuple[int, ...], ...]
"""Columns of a vector, those of each part."""


def parts_read(program: Program, value: Value) -> Parts | None:
    """Return the columns of a value that are read apart from each other, as queries, keys and values are that one
    activation makes; None if something reads the whole value, or parts share columns.

    A simulator has an activation for each part, and the step of its difference is in units of that part's gradient.
    """
    parts = _columns_read(program.users(), program, value)
    if parts is None:
        return None
    apart = list(dict.fromkeys(parts))
    columns = [column for part in apart for column in part]
    if len(set(columns)) < len(columns) or (len(columns) == value.type.width and len(apart) == 1):
        return None
    return tuple(apart)


def _columns_read(users: dict[Value, list[Op]], program: Program, value: Value) -> list[tuple[int, ...]] | None:
    """Return what each reader takes, in order; None if one takes all."""
    taken: list[tuple[int, ...]] = []
    for user in users.get(value, []):
        inner = _columns_read(users, program, user.results[0])
        if isinstance(user, Select):
            columns = [column for start, stop in unfolded(user.columns) for column in range(start, stop)]
            if min(columns) < 0:
                return None
            if inner is None:
                inner = [tuple(range(len(columns)))]
            taken += [tuple(columns[at] for at in part) for part in inner]
        elif isinstance(user, Scale | Activation | Convolution) and inner is not None:
            taken += inner
        else:
            return None
    if value in program.outputs.values():
        return None
    return taken
