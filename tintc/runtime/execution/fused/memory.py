"""How much memory a plan takes, before it runs: values by their live ranges, updates, and the largest temporaries."""

from __future__ import annotations

import math

from tintc.analysis.capture_points import sized
from tintc.ir.core import Value
from tintc.runtime.execution.fused.plan import ExecutionPlan, Sizes


def peak_bytes(plan: ExecutionPlan, itemsize: int, recorded: bool = False) -> int:
    """Bytes a run of `plan` holds at its peak, beyond the simulator's own tensors. itemsize: of the dtype; recorded:
    by autograd, which lets nothing go, and keeps about half of what exists for a time."""
    batch, held = plan.sizes.batch, _masks(plan.sizes)
    counts, updates, size, peak = plan.counts(recorded), _kept_by_updates(plan), {}, held
    for op in plan.ops:
        for result in op.results:
            size[result] = itemsize * batch * op.entries(counts, result)
            held += size[result]
        for _, name in plan.shown.get(op, ()):
            held += itemsize * math.prod(sized(op.shows()[name], batch, plan.lengths[op]))
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
    """Who sees whom, as booleans, of the whole text and of its train tokens, where it is not just the earlier ones."""
    lengths = {sizes.length, *((sizes.train,) if isinstance(sizes.train, int) else sizes.train)}
    return sizes.batch * sum(length**2 for length in lengths) if sizes.masked else 0


def _kept_by_updates(plan: ExecutionPlan) -> set[Value]:
    """What pending updates keep to the end of the run."""
    deferrals = (op.deferral() for op in plan.lazy)
    return {value for deferral in deferrals if deferral is not None for value in deferral.keeps}
