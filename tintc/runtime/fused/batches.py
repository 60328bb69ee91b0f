"""Fused execution of a batch, whole or in parts, within the memory there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tintc.errors import OptionError
from tintc.ir.inputs import Inputs
from tintc.runtime.fused.executor import FusedExecutor
from tintc.runtime.fused.memory import HEADROOM, available_bytes, fitting_batch, peak_bytes, refuse
from tintc.runtime.fused.plan import Plan, Sizes, make_plan

if TYPE_CHECKING:
    from tintc.runtime.model import TintForCausalLM


def run_fused(
    model: TintForCausalLM,
    inputs: Inputs,
    inner_lr: Tensor | None,
    outputs: tuple[str, ...],
    max_batch: int | str | None,
) -> dict[str, Tensor]:
    """The named outputs for a batch; `InputError` says what would fit if the batch does not."""
    sizes = sizes_of(inputs, model.config.vocab_size)
    part = _part(model, outputs, sizes, max_batch)
    found: list[dict[str, Tensor]] = []
    for start in range(0, sizes.batch, part):
        rows = inputs.rows(start, start + part) if part < sizes.batch else inputs
        rate = inner_lr if inner_lr is None or part >= sizes.batch else inner_lr[start : start + part]
        plan = plan_for(model, outputs, sizes_of(rows, sizes.vocab))
        found.append(FusedExecutor(model, rows, plan, rate).run(outputs))
    return found[0] if len(found) == 1 else {label: torch.cat([one[label] for one in found]) for label in outputs}


def sizes_of(inputs: Inputs, vocab: int) -> Sizes:
    batch, length = inputs.shape
    columns = inputs.train.any(0).nonzero()
    return Sizes(batch, length, int(columns[-1]) + 1 if len(columns) else 0, vocab)


def plan_for(model: TintForCausalLM, outputs: tuple[str, ...], sizes: Sizes) -> Plan:
    """The plan for these sizes, kept for the next run of the same sizes."""
    key = (outputs, sizes, model.update)
    if key not in model.plans:
        if len(model.plans) >= KEPT_PLANS:
            model.plans.clear()
        model.plans[key] = make_plan(model.program, *key)
    return model.plans[key]


KEPT_PLANS = 64


def _part(model: TintForCausalLM, outputs: tuple[str, ...], sizes: Sizes, max_batch: int | str | None) -> int:
    """How many examples to run at a time."""
    if isinstance(max_batch, int) and max_batch >= 1:
        sizes = Sizes(min(max_batch, sizes.batch), sizes.length, sizes.train, sizes.vocab)
    elif max_batch is not None and max_batch != "auto":
        raise OptionError(f"max_batch is {max_batch!r}; pass a number of examples, 'auto' or None.")
    limit = int(HEADROOM * available_bytes(model.device))
    itemsize = model.dtype.itemsize
    if peak_bytes(plan_for(model, outputs, sizes), itemsize) <= limit:
        return sizes.batch
    budget = (model.program, outputs, sizes, model.update, itemsize, limit)
    batch = fitting_batch(*budget) if max_batch == "auto" else 0
    if batch == 0:
        raise refuse(*budget)
    return batch
