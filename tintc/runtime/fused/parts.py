"""A run by several threads, each of which takes a part of the text's tokens through the whole program.

PyTorch's own threads share every single op, and meet at its end: a thousand times a run, for ops of which most are
small. Here a thread meets the others only where tokens meet. Attention reads keys and values of earlier tokens, so that
a later part follows an earlier one through a forward pass; its gradient brings terms to earlier tokens, so that the
later part leads through a backward pass; a descent reads all train tokens, and one part or the other computes it once
they are there, while it goes on with what does not need it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from tintc.ir.core import Value
from tintc.ir.inputs import Inputs
from tintc.ir.simulator import SimOp
from tintc.runtime.fused.executor import FusedExecutor
from tintc.runtime.fused.plan import Plan
from tintc.runtime.fused.relay import Relay, Stopped
from tintc.runtime.fused.schedule import PARTS, Schedule, Task, by_token, share, within
from tintc.runtime.rates import Rates

if TYPE_CHECKING:
    from tintc.runtime.model import TintForCausalLM

FEWEST = 48
"""Tokens of a part, of all examples together, below which one thread for all is as fast. Above, parts took 0.76 to 1.02
of the time: least in narrow models, whose ops without products weigh more (two cores, texts of 128 to 512 tokens)."""


def can_part(plan: Plan, device: torch.device) -> bool:
    """Whether a run by parts gives what the plan wants, and is faster.

    Capture points that an op shows are of all tokens. Modes that watch or change PyTorch's functions (profilers,
    counters, autocast) belong to the thread that has switched them on, so that another thread would escape them.
    """
    watched = _get_current_dispatch_mode_stack() or _get_current_function_mode_stack() or _profiler_enabled()
    return (
        device.type == "cpu"
        and torch.get_num_threads() >= PARTS
        and not torch.is_grad_enabled()
        and not watched
        and not plan.shown
        and not torch.is_autocast_enabled("cpu")
        and plan.sizes.batch * plan.sizes.length >= PARTS * FEWEST
    )


def run_parts(model: TintForCausalLM, inputs: Inputs, plan: Plan, rates: Rates | None) -> dict[str, Any]:
    """The plan's outputs, as `FusedExecutor.run` gives them."""
    plan.schedule = plan.schedule or Schedule(plan)
    relay = Relay()
    parts = [PartExecutor(model, inputs, plan.schedule, rates, relay, part) for part in range(PARTS)]
    with _threads_each() as count:
        others = [threading.Thread(target=_work, args=(one, count), daemon=True) for one in parts[1:]]
        try:
            for thread in others:
                thread.start()
            _work(parts[0], count)
            for thread in others:
                thread.join()
        except BaseException as error:  # an interruption between two of these calls
            relay.fail(error)
            raise
    if relay.error is not None:
        raise relay.error
    return {label: _gathered(relay, plan.schedule, value) for label, value in plan.outputs.items()}


@contextmanager
def _threads_each() -> Iterator[int]:
    """How many of PyTorch's threads each part gets; afterwards the number is what it was."""
    count = torch.get_num_threads()
    try:
        yield max(1, count // PARTS)
    finally:
        torch.set_num_threads(count)


def _work(part: PartExecutor, threads: int) -> None:
    try:
        torch.set_num_threads(threads)
        with torch.no_grad():
            part.run_part()
    except Stopped:
        pass
    except BaseException as error:  # to be raised by the caller's thread, whichever it was
        part.relay.fail(error)


def _gathered(relay: Relay, schedule: Schedule, value: Value) -> Any:
    """A value in one piece."""
    if not by_token(value):
        return relay.get(value if relay.has([value]) else (value, 0))
    return torch.cat([relay.get((value, part)) for part in range(PARTS)], 1)


class Postponed(NamedTuple):
    """A task that waits for what it reads. known: operands that the part has itself; needs: the others."""

    task: Task
    known: dict[Value, Any]
    needs: list[Any]


class PartExecutor(FusedExecutor):
    """One part of a run: the tasks of its thread."""

    def __init__(
        self,
        model: TintForCausalLM,
        inputs: Inputs,
        schedule: Schedule,
        rates: Rates | None,
        relay: Relay,
        part: int,
    ):
        super().__init__(model, inputs, schedule.plan, rates)
        self.schedule, self.relay, self.part = schedule, relay, part
        self._values: dict[Value, Any] = {}
        self._together: dict[Value, dict[tuple[int, int], Tensor]] = {}
        self._waiting: list[Postponed] = []

    def run_part(self) -> None:
        for task in self.schedule.tasks[self.part]:
            if not task.whole:
                self._run(task)
            elif task.owner == self.part:
                self._postpone(task)
                while self._meanwhile():
                    pass
            else:
                self._let_go(task.step.last)
        while self._waiting:
            self.relay.wait(self._waiting[0].needs, self._meanwhile)
            self._meanwhile()

    def here(self, op: SimOp) -> slice:
        return share(self.schedule.extents[op.results[0]], self.part)

    def frees(self, op: SimOp, value: Value) -> bool:
        return super().frees(op, value) and self.plan.resolve(value) not in self.schedule.shared

    def shared(self, op: SimOp, x: Tensor) -> Tensor | None:
        return None

    def _run(self, task: Task) -> None:
        op, operands = task.step.op, task.step.operands
        result = op.fused(self, *map(self._operand, operands, task.reads))
        if op.adds_up():
            result = self._summed(op, result)
        results = (result,) if len(op.results) == 1 else result
        self._values.update(zip(op.results, results, strict=True))
        for value in task.given:
            self.relay.put((value, self.part), self._values[value], PARTS)
        self._let_go(task.step.last)

    def _operand(self, value: Value, rows: slice | None) -> Any:
        if rows is None:
            if value not in self._values:
                self.relay.wait([value], self._meanwhile)
                self._values[value] = self.relay.get(value)
            return self._values[value]
        own = share(self.schedule.extents[value], self.part)
        if rows == own:
            return self._values[value]
        if within(rows, own):
            return self._values[value][:, rows.start - own.start : rows.stop - own.start]
        self.relay.wait(self.schedule.pieces(value, rows), self._meanwhile)
        return self._joined(value, rows)

    def _joined(self, value: Value, rows: slice) -> Tensor:
        """Positions that other parts have too; kept while there may be other readers."""
        known = self._together.setdefault(value, {}) if value in self._values else {}
        key = rows.start, rows.stop
        if key not in known:
            found = []
            for _, part in self.schedule.pieces(value, rows):
                own, x = share(self.schedule.extents[value], part), self.relay.get((value, part))
                found.append(x[:, max(rows.start, own.start) - own.start : min(rows.stop, own.stop) - own.start])
            known[key] = found[0] if len(found) == 1 else torch.cat(found, 1)
        return known[key]

    def _summed(self, op: SimOp, terms: Tensor) -> Tensor:
        """The result at the part's own tokens, from its terms and those of later parts."""
        own = self.here(op)
        if self.part:
            self.relay.put((op, self.part), terms, self.part)
        result = terms[:, own]
        for part in range(self.part + 1, PARTS):
            self.relay.wait([(op, part)], self._meanwhile)
            result = result + self.relay.get((op, part))[:, own]
            self.relay.release([(op, part)])
        return result

    def _postpone(self, task: Task) -> None:
        """To be run once all that it reads is there; until then nobody lets go of that."""
        known, needs = {}, []
        for value, rows in zip(task.step.operands, task.reads, strict=True):
            if rows is not None:
                needs += self.schedule.pieces(value, rows)
            elif value in self._values:
                known[value] = self._values[value]
            else:
                needs.append(value)
        self.relay.hold(needs)
        self._waiting.append(Postponed(task, known, needs))

    def _meanwhile(self) -> bool:
        """Run the postponed task that came first, if it can be run."""
        if not self._waiting or not self.relay.has(self._waiting[0].needs):
            return False
        (op, operands, *_), known, needs = self._waiting[0].task.step, self._waiting[0].known, self._waiting[0].needs
        task = self._waiting.pop(0).task
        given = [
            self._joined(value, rows) if rows is not None else known[value] if value in known else self.relay.get(value)
            for value, rows in zip(operands, task.reads, strict=True)
        ]
        results = op.fused(self, *given)
        for value, result in zip(op.results, (results,) if len(op.results) == 1 else results, strict=True):
            self._values[value] = result
            self.relay.put(value, result, PARTS)
        self.relay.release(needs)
        self._let_go(task.step.last)
        return True

    def _let_go(self, values: Iterable[Value]) -> None:
        for value in values:
            self._values.pop(value, None)
            self._together.pop(value, None)
            self._scores.pop(value, None)
            if value in self.schedule.shared:
                self.relay.release([(value, part) for part in range(PARTS)] if by_token(value) else [value])
