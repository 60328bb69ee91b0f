"""Liveness by reverse walks over straight-line code: the ops that a program needs, and how long it needs their
values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import TypeVar

from tintc.ir.core import Op, Value

OpT = TypeVar("OpT", bound=Op)


def needed_ops(ops: Sequence[OpT], wanted: Iterable[Value]) -> list[OpT]:
    """Return the ops that the wanted values depend on, in program order."""
    reached = set(wanted)
    kept: list[OpT] = []
    for op in reversed(ops):
        if reached.intersection(op.results):
            kept.append(op)
            reached.update(op.operands)
    return kept[::-1]


def last_reads(
    ops: Sequence[OpT], kept: Iterable[Value], reads: Callable[[OpT], Iterable[Value]] = attrgetter("operands")
) -> dict[OpT, list[Value]]:
    """Return the values that no op reads after this one, op by op.

    The op's operands come first, then results that nobody reads; values to be `kept` are never among them. reads: what
    an op reads, if that is not its operands.
    """
    last: dict[OpT, list[Value]] = {}
    seen = set(kept)
    for op in reversed(ops):
        # In reverse the first op met that reads a value is its last reader.
        values = dict.fromkeys((*reads(op), *op.results))
        last[op] = [value for value in values if value not in seen]
        seen.update(values)
    return last
