"""The gradients a simulator descends by, read off the weights that it has made.

The first step's descent runs with a learning rate so large that the old weights vanish beside what is subtracted from
them: ``W' = W - R G`` gives ``G = (W - W') / R`` to the rounding of G itself. It is the executor's own descent, fused
or literal; everything after the first step is left out. Where an optimiser sums gradients, the sums of the first step
are the gradients, but for their sign.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tintc.ir.core import Program, Value
from tintc.ir.inputs import Inputs
from tintc.ir.simulator.interface.fused_base import FusedWeights
from tintc.ir.simulator.shared.descent_common import DescentOp
from tintc.ir.simulator.shared.sums import written_out
from tintc.runtime.adaptation.state import materialised
from tintc.runtime.execution.fused.base_run import stored_parts
from tintc.runtime.execution.literal.prefix import unpack_weights
from tintc.runtime.execution.run import execute_program
from tintc.runtime.model.causal_lm import TintForCausalLM

LARGE = 2.0**40
"""The learning rate R; a power of two, so that dividing by it does not round."""
Gradients = dict[str, Tensor]


def first_step(program: Program) -> dict[str, Value]:
    """Return the weights, or the sums of gradients, that the first step's descents make, by the layer's name."""
    return {name: op.results[0] for name, op in _first_descents(program).items()}


def _first_descents(program: Program) -> dict[str, DescentOp]:
    ops = (op for op in program.ops if isinstance(op, DescentOp) and op.step == 0)
    return {op.target: op for op in ops}


@torch.no_grad()
def simulated_gradients(model: TintForCausalLM, inputs: Inputs) -> Gradients:
    """Return gradients of the first step for one text, by ``<layer>.<part>``, in the dtype of the simulator.

    inputs: of batch size one. Whatever executor the model would choose is the one that runs.
    """
    descents = _first_descents(model.program)
    updated = first_step(model.program)
    program = replace(model.program, outputs=dict(updated))
    rates = model.resolve_rates(LARGE, 1)
    results = execute_program(model, program, inputs, rates, model.choose_executor())
    gradients: Gradients = {}
    for name, value in updated.items():
        if descents[name].sums:
            gradients |= {f"{name}.{part}": -total for part, total in _summed(results[name], value, model).items()}
            continue
        stored = stored_parts(model, name)
        for part, new in unpack_weights(_complete(results[name]), value.type, model.layout).items():
            if part in descents[name].updated_parts():
                old = stored[part]
                if part == "weight":
                    old = old.flatten(-3, -2)[..., : new.shape[-2], :]
                gradients[f"{name}.{part}"] = (old - new) / LARGE
    return gradients


def _summed(sums: Any, value: Value, model: TintForCausalLM) -> dict[str, Tensor]:
    """Return the sums of one text's gradients, by part."""
    if isinstance(sums, FusedWeights):
        return {part: total[0] for part, total in written_out(sums, value.type, 1).items()}
    return unpack_weights(sums, value.type, model.layout)


def _complete(weights: Any) -> Any:
    """Return weights with their updates carried out, if fused execution has left these pending."""
    if isinstance(weights, FusedWeights):
        return materialised(weights)
    return weights
