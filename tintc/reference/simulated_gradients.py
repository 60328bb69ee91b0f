"""The gradients a simulator descends by, read off the weights that it has made.

The first step's descent runs with a learning rate so large that the old weights vanish beside what is subtracted from
them: ``W' = W - R G`` gives ``G = (W - W') / R`` to the rounding of G itself. It is the executor's own descent, fused
or literal; everything after the first step is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tintc.ir.core import Program, Value
from tintc.ir.inputs import Inputs
from tintc.ir.simulator import SimOp
from tintc.runtime.execution.fused.base_run import stored_parts
from tintc.runtime.execution.literal.unpack import matrices
from tintc.runtime.model.causal_lm import TintForCausalLM

LARGE = 2.0**40
"""The learning rate R; a power of two, so that dividing by it does not round."""
Gradients = dict[str, Tensor]


def first_step(program: Program) -> dict[str, Value]:
    """The weights that the first step makes, by the layer's name."""
    return {name: op.results[0] for name, op in _first_descents(program).items()}


def _first_descents(program: Program) -> dict[str, SimOp]:
    ops = (op for op in program.ops if isinstance(op, SimOp) and op.step == 0)
    return {name: op for op in ops if (name := op.updates()) is not None}


@torch.no_grad()
def simulated_gradients(model: TintForCausalLM, inputs: Inputs) -> Gradients:
    """Return gradients of the first step for one text, by ``<layer>.<part>``, in the dtype of the simulator.

    inputs: of batch size one. Whatever executor the model would choose is the one that runs.
    """
    descents = _first_descents(model.program)
    updated = first_step(model.program)
    with _asked_for(model, updated):
        weights: dict[str, Any] = dict(model._execute(inputs, LARGE, tuple(updated), None))
    gradients: Gradients = {}
    for name, value in updated.items():
        stored = stored_parts(model, name)
        for part, new in matrices(weights[name], value.type, model.layout).items():
            if part in descents[name].descending():
                old = stored[part]
                if part == "weight":
                    old = old.flatten(0, 1)[: new.shape[0]]
                gradients[f"{name}.{part}"] = (old - new) / LARGE
    return gradients


@contextmanager
def _asked_for(model: TintForCausalLM, values: Mapping[str, Value]) -> Iterator[None]:
    """Run with these weights among its program's outputs, updates carried out."""
    program, update, plans = model.program, model.update, model.plans
    outputs = program.outputs
    program.outputs, model.update, model.plans = outputs | dict(values), "materialised", {}
    try:
        yield
    finally:
        program.outputs, model.update, model.plans = outputs, update, plans
