"""Fused execution of a batch, whole or in parts, within the memory there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tintc.ir.core import Program, Value
from tintc.ir.inputs import Inputs
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.interface.cost_model import PendingUpdate
from tintc.ir.simulator.interface.fused_base import FusedWeights, Pending
from tintc.runtime.execution.fused.budget import Budget
from tintc.runtime.execution.fused.executor import FusedExecutor
from tintc.runtime.execution.fused.plan import ExecutionPlan, Sizes, Start
from tintc.runtime.execution.memory import at_a_time, in_parts, most_bytes
from tintc.runtime.execution.rates import Rates
from tintc.runtime.execution.simulator import Simulator

KEPT_PLANS = 64
Starts = Mapping[Value, FusedWeights]
"""Weights that a run starts from in place of the stored ones, by the value of these."""
NO_STARTS: Starts = {}


def run_fused(
    model: Simulator,
    inputs: Inputs,
    rates: Rates | None,
    outputs: tuple[str, ...],
    max_batch: int | str | None,
) -> dict[str, Tensor]:
    """Return the named outputs for a batch; raise `InputError`, which says what would fit, if the batch does not."""
    sizes = sizes_of(inputs, model.config.vocab_size)
    budget = budget_of(model, outputs)

    def fits(batch: int) -> bool:
        return plan_for(model, budget, replace(sizes, batch=batch)) is not None

    count = at_a_time(sizes.batch, max_batch, fits, lambda batch: budget.refusal(replace(sizes, batch=batch)))

    def run(rows: Inputs, own: Rates | None) -> dict[str, Tensor]:
        same = sizes if rows is inputs else sizes_of(rows, sizes.vocab)
        return _run(model, rows, own, budget, same)

    return in_parts(model, inputs, rates, count, run, halves=max_batch == "auto")


def budget_of(model: Simulator, outputs: tuple[str, ...]) -> Budget:
    """Return the memory that a pass may take now."""
    recorded = torch.is_grad_enabled()
    return Budget(model.program, outputs, model.update, model.dtype.itemsize, recorded, most_bytes(model))


def _run(
    model: Simulator,
    inputs: Inputs,
    rates: Rates | None,
    budget: Budget,
    sizes: Sizes,
    starts: Starts = NO_STARTS,
    carrying: Mapping[str, SimOp] | None = None,
) -> dict[str, Any]:
    plan = plan_for(model, budget, sizes)
    if plan is None:
        raise budget.refusal(sizes)
    return FusedExecutor(model, inputs, plan, rates, starts, carrying).run()


def run_together(
    model: Simulator,
    program: Program,
    inputs: Inputs,
    rates: Rates | None,
    starts: Starts = NO_STARTS,
    carrying: Mapping[str, SimOp] | None = None,
    update: str | None = None,
) -> dict[str, Any]:
    """Return all outputs of a program with the model's ops, weights among them, for a batch that is not cut.

    carrying: ops whose state after the text is wanted too, by name; update: how updates are kept, one of `UPDATES`
    (None: as the model says). Updates of a single example are carried out by ``auto``, if there is memory for that:
    whoever goes on from them reads them once per token.
    """
    if update is None:
        update = model.update
    sizes = replace(sizes_of(inputs, model.config.vocab_size), starts=_layers(program, starts))
    limit = most_bytes(model)
    size = model.dtype.itemsize
    recorded = torch.is_grad_enabled()
    budget = Budget(program, tuple(program.outputs), update, size, recorded, limit, may_split_batch=False)
    if sizes.batch == 1 and update == "auto":
        materialised = replace(budget, update="materialised")
        if plan_for(model, materialised, sizes) is not None:
            return _run(model, inputs, rates, materialised, sizes, starts, carrying)
    return _run(model, inputs, rates, budget, sizes, starts, carrying)


def _layers(program: Program, starts: Starts) -> tuple[Start, ...]:
    """Return the layers that do not start from their stored weights, as a plan knows them."""
    layers: list[Start] = []
    for op in program.ops:
        if isinstance(op, SimOp) and op.results[0] in starts:
            updates = tuple(map(_counted, starts[op.results[0]].pending))
            layers.append(Start(str(op.stored_weight()), updates))
    return tuple(layers)


def _counted(update: Pending) -> PendingUpdate:
    """Return an update as a plan counts it, by the tokens that it was made of."""
    tokens = update.dy.shape[1]
    if update.experts is not None:
        tokens //= update.source.type.dims[1]
    return PendingUpdate(update.source, tokens)


def sizes_of(inputs: Inputs, vocab: int) -> Sizes:
    """Return the sizes, and what else is decided by the inputs' values. They are read here, once, so that the pass need
    not wait for a GPU."""
    batch, length = inputs.shape
    places = torch.arange(1, length + 1, device=inputs.train.device)
    ends = (inputs.train * places).flatten(-2).amax(-1)
    trained = inputs.train.flatten(-2).sum(-1)
    *last, filled = torch.cat((ends.reshape(-1), (trained == batch * ends).all().reshape(1))).tolist()
    if ends.dim():
        return Sizes(batch, length, tuple(last), vocab, not inputs.plain, filled=bool(filled))
    return Sizes(batch, length, last[0], vocab, not inputs.plain, filled=bool(filled))


def plan_for(model: Simulator, budget: Budget, sizes: Sizes) -> ExecutionPlan | None:
    """Return the plan for these sizes, kept for the next run of the same sizes while it fits; None if nothing fits."""
    key = (budget.outputs, tuple(budget.program.outputs.values()), sizes, budget.update)
    plan = model.plans.get(key)
    if plan is None or budget.needs(plan) > budget.limit:
        plan = budget.plan(sizes)
        if plan is not None:
            if len(model.plans) >= KEPT_PLANS:
                model.plans.clear()
            model.plans[key] = plan
    return plan
