"""Which part of a run computes what, and reads what of the others; made once for a plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tintc.ir.core import Value
from tintc.runtime.fused.plan import Plan, Step

PARTS = 2


def share(length: int, part: int) -> slice:
    """The positions of a part."""
    return slice(part * length // PARTS, (part + 1) * length // PARTS)


def within(rows: slice, own: slice) -> bool:
    return own.start <= rows.start and rows.stop <= own.stop


def by_token(value: Value) -> bool:
    """Whether a value has a row for every token, as weights have not."""
    return value.type.kind in ("tokens", "logits")


class Task(NamedTuple):
    """A step as the parts see it. reads: positions of each operand, None for weights; whole: whether it is one part's,
    `owner`'s, because its result is of all tokens; given: results that other parts read."""

    step: Step
    reads: tuple[slice | None, ...]
    whole: bool
    owner: int
    given: tuple[Value, ...]


class Schedule:
    """What each part does in a plan. extents: how many positions a value of tokens has; shared: values that not only
    the part reads that has computed them."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.extents: dict[Value, int] = {}
        for step in plan.steps:
            length = step.read if step.operands else plan.lengths[step.op]
            self.extents |= {value: length for value in step.op.results if by_token(value)}
        drafts = [list(self._tasks(part)) for part in range(PARTS)]
        self.shared = set(plan.outputs.values())
        for part, tasks in enumerate(drafts):
            for task in tasks:
                self.shared |= set(task.step.op.results) if task.whole else set()
                self.shared |= {
                    value
                    for value, rows in zip(task.step.operands, task.reads, strict=True)
                    if rows is not None and not within(rows, share(self.extents[value], part))
                }
        self.tasks = [[self._told(task) for task in tasks] for tasks in drafts]

    def _tasks(self, part: int) -> Iterator[Task]:
        turn = 0
        for step in self.plan.steps:
            read = step.read if step.operands else self.plan.lengths[step.op]
            kinds = [by_token(value) for value in step.operands]
            whole = any(kinds) and not by_token(step.op.results[0])
            own, earlier = share(read, part), step.op.remembers()
            rows = [slice(0, read) if whole else slice(0, own.stop) if i in earlier else own for i in range(len(kinds))]
            reads = tuple(at if tokens else None for at, tokens in zip(rows, kinds, strict=True))
            yield Task(step, reads, whole, turn % PARTS, ())
            turn += whole

    def _told(self, task: Task) -> Task:
        return task._replace(given=tuple(value for value in task.step.op.results if value in self.shared))

    def pieces(self, value: Value, rows: slice) -> list[tuple[Value, int]]:
        """The parts that have these positions."""
        extent = self.extents[value]
        held = ((part, share(extent, part)) for part in range(PARTS))
        return [(value, part) for part, own in held if own.start < rows.stop and rows.start < own.stop]
