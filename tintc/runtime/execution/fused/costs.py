"""The multiply-adds and the memory that a plan takes, before it runs.

Multiply-adds are those of the products, which are nearly all of a run's time on long enough texts. Memory is that of
values by their live ranges, of updates, and of the largest temporaries.
"""

from __future__ import annotations

import math

from tintc.analysis.capture_points import sized
from tintc.ir.core import Value
from tintc.runtime.execution.fused.plan import ExecutionPlan, Sizes


def multiply_adds(plan: ExecutionPlan) -> int:
    """Return the multiply-adds of all products of a plan, pending updates included.

    Causal attention counts the keys it sees.
    """
    counts = plan.cost_model()
    return plan.sizes.batch * sum(op.multiply_adds(counts, *plan.operands(op)) for op in plan.ops)


def peak_bytes(plan: ExecutionPlan, itemsize: int, recorded: bool = False) -> int:
    """Return the bytes that a run of `plan` holds at its peak, beyond the simulator's own tensors.

    itemsize: of the dtype; recorded: by autograd, which lets nothing go, and keeps about half of what exists for a
    time.
    """
    batch = plan.sizes.batch
    counts = plan.cost_model(recorded)
    updates = _kept_by_updates(plan)
    size: dict[Value, int] = {}
    held = _masks(plan.sizes)
    peak = held
    for op in plan.ops:
        for result in op.results:
            size[result] = itemsize * batch * op.entries(counts, result)
            held += size[result]
        for _, name in plan.shown.get(op, ()):
            held += itemsize * math.prod(sized(op.extra_capture_points()[name], batch, plan.lengths[op]))
        temporary = batch * op.scratch(counts, itemsize)
        peak = max(peak, held + temporary)
        if recorded:
            held += temporary // 2
            continue
        for value in plan.last[op]:
            if value not in updates:
                held -= size[value]
    return max(peak, held)


def _masks(sizes: Sizes) -> int:
    """Return the bytes of attention masks, of the whole text and of its train tokens; plain causal masks take none."""
    if not sizes.masked:
        return 0
    lengths = {sizes.length, *sizes.train_ends}
    return sizes.batch * sum(length**2 for length in lengths)


def _kept_by_updates(plan: ExecutionPlan) -> set[Value]:
    """Return the values that pending updates keep to the end of the run."""
    deferrals = (op.deferral() for op in plan.lazy)
    return {value for deferral in deferrals if deferral is not None for value in deferral.keeps}
