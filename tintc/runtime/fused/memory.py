"""How much memory a plan takes, before it runs: values by their live ranges, updates, and the largest temporaries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import psutil
import torch

from tintc.errors import InputError
from tintc.ir.core import Program, Value
from tintc.runtime.fused.plan import Plan, Sizes, make_plan

HEADROOM = 0.9
"""Share of the available memory that a run may plan to use."""


def peak_bytes(plan: Plan, itemsize: int) -> int:
    """Bytes a run of `plan` holds at its peak, beyond the simulator's own tensors. itemsize: of the dtype."""
    batch, held, peak = plan.sizes.batch, 0, 0
    counts, kept, size = plan.counts(), _kept_by_updates(plan), {}
    for op in plan.ops:
        for result in op.results:
            size[result] = itemsize * batch * op.entries(counts, result)
            held += size[result]
        peak = max(peak, held + batch * op.scratch(counts, itemsize))
        for value in plan.last[op]:
            if value not in kept:
                held -= size[value]
    return peak


def _kept_by_updates(plan: Plan) -> set[Value]:
    """What pending updates keep to the end of the run."""
    deferrals = (op.deferral() for op in plan.lazy)
    return {value for deferral in deferrals if deferral is not None for value in deferral.keeps}


def available_bytes(device: torch.device) -> int:
    """Free memory of the machine, or of the GPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def fitting_batch(
    program: Program, outputs: tuple[str, ...], sizes: Sizes, update: str, itemsize: int, limit: int
) -> int:
    """The largest batch, at most the wanted one, whose plan stays below `limit` bytes; 0 if not even one example
    does."""

    def fits(batch: int) -> bool:
        return peak_bytes(make_plan(program, outputs, replace(sizes, batch=batch), update), itemsize) <= limit

    return _largest(fits, sizes.batch)


def refuse(
    program: Program, outputs: tuple[str, ...], sizes: Sizes, update: str, itemsize: int, limit: int
) -> InputError:
    """The error that says what would fit: a smaller batch, or, at this batch, a shorter text."""

    def fits(length: int) -> bool:
        shorter = replace(sizes, length=length, train=sizes.train * length // sizes.length)
        return peak_bytes(make_plan(program, outputs, shorter, update), itemsize) <= limit

    need = peak_bytes(make_plan(program, outputs, sizes, update), itemsize)
    batch = fitting_batch(program, outputs, sizes, update, itemsize, limit)
    length = _largest(fits, sizes.length)
    advice = (
        f"a batch of {batch} would fit, or pass max_batch='auto'" if batch else f"texts of {length} tokens would fit"
    )
    return InputError(
        f"A batch of {sizes.batch} texts of {sizes.length} tokens needs about {need / 1e9:.2f} GB; "
        f"{limit / 1e9:.2f} GB can be used; {advice}."
    )


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest n <= most with fits(n), by bisection; 0 if none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
