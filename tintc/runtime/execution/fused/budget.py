"""Fitting a run into memory: the plan to run, the largest batch, or the sentence that says what would fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tintc.errors import InputError
from tintc.ir.core import Program
from tintc.runtime.execution.fused.costs import peak_bytes
from tintc.runtime.execution.fused.plan import ExecutionPlan, Sizes
from tintc.runtime.execution.fused.planner import UPDATES, make_plan
from tintc.runtime.execution.memory import refusal


@dataclass(frozen=True)
class Budget:
    """Memory for one call. update: as the model's; itemsize: of its dtype; recorded: whether autograd records the run;
    limit: bytes; may_split_batch: whether the batch may run a few examples at a time."""

    program: Program
    outputs: tuple[str, ...]
    update: str
    itemsize: int
    recorded: bool
    limit: int
    may_split_batch: bool = True

    def plan(self, sizes: Sizes) -> ExecutionPlan | None:
        """Return the plan to run; None if none fits.

        Its updates are of a slower kind that takes less memory where those of the fastest do not fit.
        """
        kinds = UPDATES
        if self.update != "auto":
            kinds = (self.update,)
        for update in kinds:
            plan = make_plan(self.program, self.outputs, sizes, update)
            if self.needs(plan) <= self.limit:
                return plan
        return None

    def needs(self, plan: ExecutionPlan) -> int:
        key = (self.itemsize, self.recorded)
        if key not in plan.peaks:
            plan.peaks[key] = peak_bytes(plan, *key)
        return plan.peaks[key]

    def refusal(self, sizes: Sizes) -> InputError:
        """Return the error that says what would fit: a smaller batch, or, at this batch, a shorter text."""

        def fits(batch: int, length: int) -> bool:
            return self.plan(replace(sizes, batch=batch).shortened(length)) is not None

        need = self.needs(make_plan(self.program, self.outputs, sizes, self.update))
        return refusal(sizes.batch, sizes.length, need, self.limit, fits, self.may_split_batch, self.recorded)
