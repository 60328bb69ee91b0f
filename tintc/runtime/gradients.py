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
from torch.nn import functional as F

from tintc.ir import simulator as sim
from tintc.ir.core import Program, Type, Value
from tintc.ir.inputs import Inputs
from tintc.ir.layout import Layout
from tintc.ir.simulator.base import PrefixTiles
from tintc.ir.simulator.fused_base import FusedWeights
from tintc.runtime.model import TintForCausalLM

LARGE = 2.0**40
"""The learning rate R; a power of two, so that dividing by it does not round."""
Gradients = dict[str, Tensor]


def first_step(program: Program) -> dict[str, Value]:
    """The weights that the first step makes, by the layer's name."""
    descents = (op for op in program.ops if isinstance(op, sim.LinearDescent | sim.NormDescent))
    return {op.target: op.result for op in descents if op.step == 0}


@torch.no_grad()
def simulated_gradients(model: TintForCausalLM, inputs: Inputs) -> Gradients:
    """Gradients of the first step for one text, by ``<layer>.<part>``, in the dtype of the simulator.

    inputs: of batch size one. Whatever executor the model would choose is the one that runs.
    """
    made = first_step(model.program)
    with _asked_for(model, made):
        found: dict[str, Any] = dict(model._execute(inputs, LARGE, tuple(made), None))
    gradients: Gradients = {}
    norms = {op.target: op.parts for op in model.program.ops if isinstance(op, sim.NormDescent)}
    for name, value in made.items():
        stored = dict(model.prefix(name).named_parameters(recurse=False))
        for part, new in _matrices(found[name], value.type, model.layout).items():
            if part in norms.get(name, stored):
                old = stored[part]
                old = old.flatten(0, 1)[: new.shape[0]] if part == "weight" else old
                gradients[f"{name}.{part}"] = (old - new) / LARGE
    return gradients


@contextmanager
def _asked_for(model: TintForCausalLM, values: Mapping[str, Value]) -> Iterator[None]:
    """The model with these weights among its program's outputs, updates carried out."""
    program, update, plans = model.program, model.update, model.plans
    outputs = program.outputs
    program.outputs, model.update, model.plans = outputs | dict(values), "materialised", {}
    try:
        yield
    finally:
        program.outputs, model.update, model.plans = outputs, update, plans


def _matrices(made: FusedWeights | PrefixTiles, kind: Type, layout: Layout) -> dict[str, Tensor]:
    """The parts that descend, of the one text: ``weight [dout, din]`` of a linear layer, ``bias [dout]`` of any."""
    if isinstance(made, FusedWeights):
        parts = {"weight": made.weight, "bias": made.bias}
        found = {part: tensor for part, tensor in parts.items() if tensor is not None}
        found = {part: tensor[0] if tensor.dim() > _dims(kind, part) else tensor for part, tensor in found.items()}
    else:
        found = _from_prefixes(made, kind, layout)
    if kind.kind == "norm":
        gain = found.pop("weight", None)
        found |= {"gain": gain} if gain is not None and "vector" in kind.parts else {}
    return found


def _dims(kind: Type, part: str) -> int:
    return 2 if part == "weight" and kind.kind == "linear" else 1


def _from_prefixes(made: PrefixTiles, kind: Type, layout: Layout) -> dict[str, Tensor]:
    """Prefix embeddings as a matrix and a bias: what `tintc.runtime.literal.blocks.Prefix` does, undone."""
    dout, din = kind.dims if kind.kind == "linear" else (kind.dims[0], kind.dims[0])
    mains, end = layout.main_heads * layout.d_h, layout.main_heads * layout.d_h + layout.pitch
    rows, biases = [], []
    for row in made.rows:
        tiles = [tile[0] for tile in row if isinstance(tile, Tensor)]
        rows.append(torch.cat([tile[:, :mains].reshape(-1, layout.pitch) for tile in tiles], 1)[:, :din])
        missing = max(0, end - tiles[0].shape[1])
        biases.append(F.pad(torch.stack([tile[0, mains:end] for tile in tiles]).sum(0), (0, missing)))
    weight = torch.cat(rows)
    found = {"weight": weight[0] if "vector" in kind.parts else weight[:dout]}
    return found | ({"bias": torch.cat(biases)[:dout]} if any(p.startswith("bias") for p in kind.parts) else {})
