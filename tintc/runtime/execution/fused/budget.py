"""What fits into memory: the plan to run, the largest batch, or the sentence that says what would fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tintc.errors import InputError
from tintc.ir.core import Program
from tintc.runtime.execution.fused.memory import peak_bytes
from tintc.runtime.execution.fused.plan import UPDATES, ExecutionPlan, Sizes, make_plan

HEADROOM = 0.9
"""Share of the available memory that a run may plan to use."""


@dataclass(frozen=True)
class Budget:
    """Memory for one call. update: as the model's; itemsize: of its dtype; recorded: whether autograd records the run;
    limit: bytes; parts: whether the batch may be run in parts."""

    program: Program
    outputs: tuple[str, ...]
    update: str
    itemsize: int
    recorded: bool
    limit: int
    parts: bool = True

    def plan(self, sizes: Sizes) -> ExecutionPlan | None:
        """The plan to run; a slower kind of update that takes less memory where the fastest does not fit. None if
        none fits."""
        for update in UPDATES if self.update == "auto" else (self.update,):
            plan = make_plan(self.program, self.outputs, sizes, update)
            if self.needs(plan) <= self.limit:
                return plan
        return None

    def needs(self, plan: ExecutionPlan) -> int:
        key = (self.itemsize, self.recorded)
        if key not in plan.peaks:
            plan.peaks[key] = peak_bytes(plan, *key)
        return plan.peaks[key]

    def largest_batch(self, sizes: Sizes) -> int:
        """The most examples, up to those of `sizes`, that fit; 0 if not even one does."""
        return _largest(lambda batch: self.plan(replace(sizes, batch=batch)) is not None, sizes.batch)

    def refusal(self, sizes: Sizes) -> InputError:
        """The error that says what would fit: a smaller batch, or, at this batch, a shorter text."""

        def fits(length: int) -> bool:
            return self.plan(sizes.shortened(length)) is not None

        need = self.needs(make_plan(self.program, self.outputs, sizes, self.update))
        batch = self.largest_batch(sizes)
        if batch:
            advice = f"a batch of {batch} would fit" + (", or pass max_batch='auto'" if self.parts else "")
        else:
            length = _largest(fits, sizes.length)
            advice = f"texts of {length} tokens would fit" if length else "no text would fit: free memory"
        if self.recorded:
            advice += ", and without gradients (torch.no_grad()) a run takes far less"
        return InputError(
            f"A batch of {sizes.batch} texts of {sizes.length} tokens needs about {need / 1e9:.2f} GB; "
            f"{self.limit / 1e9:.2f} GB can be used; {advice}."
        )


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest n <= most with fits(n), by bisection; 0 if none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
