"""Fitting a run into memory: the plan to run, the largest batch, or the sentence that says what would fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tintc.errors import InputError
from tintc.ir.core import Program
from tintc.runtime.execution.fused.costs import peak_bytes
from tintc.runtime.execution.fused.plan import UPDATES, ExecutionPlan, Sizes, make_plan

HEADROOM = 0.9
"""Share of the available memory that a run may plan to use."""


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

    def largest_batch(self, sizes: Sizes) -> int:
        """Return the most examples, up to those of `sizes`, that fit; 0 if not even one does."""
        return _largest(lambda batch: self.plan(replace(sizes, batch=batch)) is not None, sizes.batch)

    def refusal(self, sizes: Sizes) -> InputError:
        """Return the error that says what would fit: a smaller batch, or, at this batch, a shorter text."""

        def fits(length: int) -> bool:
            return self.plan(sizes.shortened(length)) is not None

        need = self.needs(make_plan(self.program, self.outputs, sizes, self.update))
        batch = self.largest_batch(sizes)
        if batch:
            advice = f"a batch of {batch} would fit"
            if self.may_split_batch:
                advice += ", or pass max_batch='auto'"
        else:
            length = _largest(fits, sizes.length)
            advice = "no text would fit: free memory"
            if length:
                advice = f"texts of {length} tokens would fit"
        if self.recorded:
            advice += ", and without gradients (torch.no_grad()) a run takes far less"
        return InputError(
            f"A batch of {sizes.batch} texts of {sizes.length} tokens needs about {need / 1e9:.2f} GB; "
            f"{self.limit / 1e9:.2f} GB can be used; {advice}."
        )


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest n <= most with fits(n), by bisection; 0 if none."""
    low = 0
    high = most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
