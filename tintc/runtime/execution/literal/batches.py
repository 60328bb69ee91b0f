"""Literal execution of a batch, whole or in parts, within the memory there is."""

from __future__ import annotations

import torch
from torch import Tensor

from tintc.errors import InputError
from tintc.ir.core import Program
from tintc.ir.inputs import Inputs
from tintc.runtime.execution.literal.budget import peak_bytes
from tintc.runtime.execution.literal.executor import LiteralExecutor
from tintc.runtime.execution.memory import at_a_time, in_parts, most_bytes, refusal
from tintc.runtime.execution.rates import Rates
from tintc.runtime.execution.simulator import Simulator


def run_literal(
    model: Simulator, inputs: Inputs, rates: Rates | None, outputs: tuple[str, ...], max_batch: int | str | None
) -> dict[str, Tensor]:
    """Return the named outputs for a batch; raise `InputError`, which says what would fit, if the batch does not."""
    batch, length = inputs.shape
    limit = most_bytes(model)

    def fits(count: int) -> bool:
        return _need(model, model.program, count, length) <= limit

    def refused(count: int) -> InputError:
        return _refusal(model, model.program, count, length, limit, parts=True)

    count = at_a_time(batch, max_batch, fits, refused)

    def run(rows: Inputs, own: Rates | None) -> dict[str, Tensor]:
        return LiteralExecutor(model, rows, own).run(outputs)

    return in_parts(model, inputs, rates, count, run, halves=max_batch == "auto")


def check_fits(model: Simulator, program: Program, inputs: Inputs) -> None:
    """Raise `InputError`, which says what would fit, if a batch that cannot be cut does not."""
    batch, length = inputs.shape
    limit = most_bytes(model)
    if _need(model, program, batch, length) > limit:
        raise _refusal(model, program, batch, length, limit, parts=False)


def _need(model: Simulator, program: Program, batch: int, length: int) -> int:
    return peak_bytes(program, model.layout, batch, length, model.dtype.itemsize, torch.is_grad_enabled())


def _refusal(model: Simulator, program: Program, batch: int, length: int, limit: int, parts: bool) -> InputError:
    need = _need(model, program, batch, length)
    return refusal(
        batch,
        length,
        need,
        limit,
        lambda count, shorter: _need(model, program, count, shorter) <= limit,
        parts,
        torch.is_grad_enabled(),
    )
