"""Reverse walks over straight-line code, on ``a -> b -> c``, ``a -> d`` and an ``e`` that nobody reads."""

from __future__ import annotations

from tintc.ir.auxiliary import Activation, Add, Embedding
from tintc.ir.core import Op, Value, tokens
from tintc.ir.liveness import last_reads, needed_ops

A, B, C, D, E = (Value(name, tokens(4)) for name in "abcde")
OPS: list[Op] = [
    Embedding(results=(A,), table="t"),
    Activation(operands=(A,), results=(B,), fn="relu"),
    Add(operands=(B, B), results=(C,)),
    Activation(operands=(A,), results=(D,), fn="relu"),
    Activation(operands=(D,), results=(E,), fn="relu"),
]


def test_needed_ops() -> None:
    assert needed_ops(OPS, [C]) == OPS[:3]
    assert needed_ops(OPS, [D]) == [OPS[0], OPS[3]]
    assert needed_ops(OPS, []) == []


def test_last_reads() -> None:
    last = last_reads(OPS, [C])
    assert [last[op] for op in OPS] == [[], [], [B], [A], [D, E]]
    assert last_reads(OPS, [C, A])[OPS[3]] == []


def test_last_reads_of_more_than_the_operands() -> None:
    last = last_reads(OPS, [C], lambda op: (*op.operands, B) if op is OPS[4] else op.operands)
    assert last[OPS[2]] == [] and last[OPS[4]] == [D, B, E]
