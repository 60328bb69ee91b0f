"""What a run may take, and the sentence for a batch that does not fit: shared by both executors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tintc.errors import InputError, OptionError
from tintc.ir.inputs import Inputs
from tintc.runtime.execution.available import available_bytes
from tintc.runtime.execution.fused.placed import devices_of
from tintc.runtime.execution.rates import Rates
from tintc.runtime.execution.simulator import Simulator

HEADROOM = 0.9
"""Share of the available memory that a run may plan to use."""
Run = Callable[[Inputs, Rates | None], dict[str, Tensor]]
"""A function that runs some examples."""


def most_bytes(sim: Simulator) -> int:
    """Return the bytes that a run of the simulator may plan to use now.

    Of several devices as much as the fullest has, since a plan does not say what lies where. What graphs hold counts as
    available, and is not.
    """
    available = min(map(available_bytes, devices_of(sim)))
    return int(HEADROOM * max(0, available - sim.graphs.held))


def largest(fits: Callable[[int], bool], most: int) -> int:
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


def refusal(
    batch: int, length: int, need: int, limit: int, fits: Callable[[int, int], bool], parts: bool, recorded: bool
) -> InputError:
    """Return the error that says what would fit: a smaller batch, or, at this batch, a shorter text.

    need, limit: bytes; fits: whether a batch of texts of a length would; parts: whether the batch may run in parts;
    recorded: whether autograd records the run.
    """
    smaller = largest(lambda count: fits(count, length), batch)
    if smaller:
        advice = f"a batch of {smaller} would fit"
        if parts:
            advice += ", or pass max_batch='auto'"
    else:
        shorter = largest(lambda count: fits(batch, count), length)
        advice = "no text would fit: free memory"
        if shorter:
            advice = f"texts of {shorter} tokens would fit"
    if recorded:
        advice += ", and without gradients (torch.no_grad()) a run takes far less"
    return InputError(
        f"A batch of {batch} texts of {length} tokens needs about {need / 1e9:.2f} GB; {limit / 1e9:.2f} GB can be "
        f"used; {advice}."
    )


def at_a_time(
    batch: int, max_batch: int | str | None, fits: Callable[[int], bool], refused: Callable[[int], InputError]
) -> int:
    """Return the number of examples to run at a time; raise `OptionError` for a wrong `max_batch`, and the error that
    `refused` gives for a number that does not fit."""
    if isinstance(max_batch, int) and max_batch >= 1:
        batch = min(max_batch, batch)
    elif max_batch is not None and max_batch != "auto":
        raise OptionError(f"max_batch is {max_batch!r}; pass a number of examples, 'auto' or None.")
    if fits(batch):
        return batch
    fitting = 0
    if max_batch == "auto":
        fitting = largest(fits, batch)
    if fitting == 0:
        raise refused(batch)
    return fitting


def in_parts(
    model: Simulator, inputs: Inputs, rates: Rates | None, count: int, run: Run, halves: bool
) -> dict[str, Tensor]:
    """Return what running all examples gives, `count` of them at a time.

    halves: whether to go on with half as many where the memory does not suffice, since another process has taken it or
    a limit of address space has holes. Raises `InputError` where it does not suffice all the same.
    """
    batch = inputs.shape[0]
    results: list[dict[str, Tensor]] = []
    start = 0
    while start < batch:
        if count < batch and model.edits:
            raise InputError("A batch whose values are edited must run whole; pass a smaller one, without max_batch.")
        rows, row_rates = inputs, rates
        if count < batch:
            rows = inputs.rows(start, start + count)
        if rates is not None and count < batch:
            row_rates = rates.rows(slice(start, start + count))
        try:
            results.append(run(rows, row_rates))
            start += count
        except (RuntimeError, MemoryError) as error:
            if not is_exhausted(error):
                raise
            if not halves or count == 1:
                raise InputError(
                    f"The memory does not suffice for {min(count, batch)} of {batch} texts at a time "
                    f"({str(error).splitlines()[0][:100]}); pass fewer, or shorter ones, or free memory."
                ) from error
            count = min(count, batch) // 2
    if len(results) == 1:
        return results[0]
    return {label: torch.cat([result[label] for result in results]) for label in results[0]}


def is_exhausted(error: BaseException) -> bool:
    """Return True for what PyTorch or Python raise where memory cannot be had."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
