"""Fused execution of a batch, whole or in parts, within the memory there is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tintc.errors import InputError, OptionError
from tintc.ir.core import Program
from tintc.ir.inputs import Inputs
from tintc.runtime.execution.fused.available import available_bytes
from tintc.runtime.execution.fused.budget import HEADROOM, Budget
from tintc.runtime.execution.fused.executor import FusedExecutor
from tintc.runtime.execution.fused.plan import ExecutionPlan, Sizes
from tintc.runtime.execution.rates import Rates
from tintc.runtime.execution.simulator import Simulator

KEPT_PLANS = 64


def run_fused(
    model: Simulator,
    inputs: Inputs,
    rates: Rates | None,
    outputs: tuple[str, ...],
    max_batch: int | str | None,
) -> dict[str, Tensor]:
    """The named outputs for a batch; `InputError` says what would fit if the batch does not."""
    sizes = sizes_of(inputs, model.config.vocab_size)
    limit = int(HEADROOM * available_bytes(model.device))
    budget = Budget(model.program, outputs, model.update, model.dtype.itemsize, torch.is_grad_enabled(), limit)
    part = _part(model, budget, sizes, max_batch)
    if model.edits and part < sizes.batch:
        raise InputError("A batch whose values are edited must run whole; pass a smaller one, without max_batch.")
    found: list[dict[str, Tensor]] = []
    for start in range(0, sizes.batch, part):
        rows = inputs.rows(start, start + part) if part < sizes.batch else inputs
        given = rates if rates is None or part >= sizes.batch else rates.rows(slice(start, start + part))
        smaller = sizes_of(rows, sizes.vocab) if part < sizes.batch else sizes
        plan = plan_for(model, budget, smaller)
        if plan is None:
            raise budget.refusal(smaller)
        found.append(FusedExecutor(model, rows, plan, given).run())
    return found[0] if len(found) == 1 else {label: torch.cat([one[label] for one in found]) for label in outputs}


def run_together(model: Simulator, program: Program, inputs: Inputs, rates: Rates | None) -> dict[str, Any]:
    """All outputs of a program with the model's ops, weights among them, for a batch that is not cut.

    Updates of a single example are carried out, if there is memory for that: whoever goes on from them reads them once
    per token.
    """
    sizes, limit = sizes_of(inputs, model.config.vocab_size), int(HEADROOM * available_bytes(model.device))
    outputs, recorded, size = tuple(program.outputs), torch.is_grad_enabled(), model.dtype.itemsize
    budget = Budget(program, outputs, model.update, size, recorded, limit, parts=False)
    carried = replace(budget, update="materialised") if sizes.batch == 1 and model.update == "auto" else budget
    plan = plan_for(model, carried, sizes) or plan_for(model, budget, sizes)
    if plan is None:
        raise budget.refusal(sizes)
    return FusedExecutor(model, inputs, plan, rates).run()


def sizes_of(inputs: Inputs, vocab: int) -> Sizes:
    batch, length = inputs.shape
    places = torch.arange(1, length + 1, device=inputs.train.device)
    ends = (inputs.train * places).flatten(-2).amax(-1).tolist()
    return Sizes(batch, length, tuple(ends) if isinstance(ends, list) else ends, vocab, not inputs.plain)


def plan_for(model: Simulator, budget: Budget, sizes: Sizes) -> ExecutionPlan | None:
    """The plan for these sizes, kept for the next run of the same sizes while it fits; None if nothing fits."""
    key = (budget.outputs, tuple(budget.program.outputs.values()), sizes, budget.update)
    plan = model.plans.get(key)
    if plan is None or budget.needs(plan) > budget.limit:
        plan = budget.plan(sizes)
        if plan is not None:
            if len(model.plans) >= KEPT_PLANS:
                model.plans.clear()
            model.plans[key] = plan
    return plan


def _part(model: Simulator, budget: Budget, sizes: Sizes, max_batch: int | str | None) -> int:
    """How many examples to run at a time."""
    if isinstance(max_batch, int) and max_batch >= 1:
        sizes = replace(sizes, batch=min(max_batch, sizes.batch))
    elif max_batch is not None and max_batch != "auto":
        raise OptionError(f"max_batch is {max_batch!r}; pass a number of examples, 'auto' or None.")
    if plan_for(model, budget, sizes) is not None:
        return sizes.batch
    batch = budget.largest_batch(sizes) if max_batch == "auto" else 0
    if batch == 0:
        raise budget.refusal(sizes)
    return batch
