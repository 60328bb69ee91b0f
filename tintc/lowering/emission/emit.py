"""The simulator's tensors: stored prefixes, tables, rates and score vectors, and the structural tensors.

`specs` says what a program's artefact holds, without computing anything; `emit` computes it from the auxiliary's
tensors. Names are those of the module tree, so that the result is a state dict:

- ``prefixes.<layer>.weight [ceil(dout/S), S, din]``, ``.bias [dout]``; norms ``.gain [D]``, ``.bias [D]``
- ``tables.<parameter>``: token and position embeddings and the head, once, D wide
- ``rates.<layer> [N]``: learning rate of every step
- ``score_vectors.<parameter>``: rotary frequencies, gains of rotated queries, their scales by position, sinks
- ``structure.<block>...``: the same for every layer; ``structure.<module>.<block>...`` where modules share less
  (`tintc.lowering.emission.sharing`)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from tintc.errors import IRError, ModelError
from tintc.ir import simulator as sim
from tintc.ir.auxiliary.interpreter import view
from tintc.ir.block_specs import TensorSpec
from tintc.ir.core import Program
from tintc.ir.simulator.interface.storage import Storage
from tintc.ir.structure import block_tensors, shared_tensors
from tintc.lowering.emission.sharing import Placed, Places, around, placement
from tintc.lowering.passes.plan_layout import layout_of

Source = Mapping[str, Tensor]
FULL_PRECISION = ("rates.", "score_vectors.")
"""Tensors that stay in fp32 or better when the simulator is stored in a shorter type."""


def blocks_of(program: Program, places: Places | None = None) -> dict[str, Placed]:
    """Return every structural block of the artefact, by its name below ``structure``, in order of first use. places:
    what `placement` returns, where it is known."""
    blocks: dict[str, Placed] = {}
    for placed in (places or placement(program)).values():
        for block in placed.values():
            blocks.setdefault(block.name, block)
    return blocks


def structure_specs(program: Program, places: Places | None = None) -> dict[str, TensorSpec]:
    """Return all tensors below ``structure``; position matrices and gates only if some block uses them. places: as of
    `blocks_of`."""
    blocks = blocks_of(program, places).values()
    specs = {
        f"{placed.name}.{part}": spec for placed in blocks for part, spec in block_tensors(placed.block.spec).items()
    }
    names: dict[str, dict[str, None]] = defaultdict(dict)
    for placed in blocks:
        for name, kind in around(placed).items():
            names[kind][name] = None
    shared = shared_tensors(layout_of(program))
    specs |= {name: spec for kind, spec in shared.items() for name in names[kind]}
    return {f"structure.{name}": spec for name, spec in specs.items()}


def specs(
    program: Program, source: Source | None = None, lr: float = 0.0, places: Places | None = None
) -> dict[str, TensorSpec]:
    """Return every tensor of the artefact, by state-dict name, in a fixed order. Without `source` only shapes may be
    used. places: as of `blocks_of`."""
    storage = storage_of(program, source, lr)
    tensors: dict[str, TensorSpec] = {}
    for op in program.ops:
        if isinstance(op, sim.SimOp):
            for name, spec in op.stored(storage).items():
                tensors.setdefault(name, spec)
    return tensors | structure_specs(program, places)


def storage_of(program: Program, source: Source | None = None, lr: float = 0.0) -> Storage:
    """Return what the program's ops read to describe their stored tensors; without `source`, shapes only."""
    return Storage(layout_of(program), partial(_parameter, program, source), program.attributes["n_steps"], lr)


def _parameter(program: Program, source: Source | None, name: str) -> TensorSpec:
    """Return a parameter of the program, read from the checkpoint when it is built; raise `IRError` if it is not
    declared."""
    if name not in program.parameters:
        raise IRError(f"The program names the parameter @{name}, which it does not declare.")
    parameter = program.parameters[name]

    def build() -> Tensor:
        assert source is not None, "specs() was called without the auxiliary's tensors"
        tensor = view(parameter, source[parameter.source])
        if tuple(tensor.shape) != parameter.shape:
            raise ModelError(f"{parameter.source} gives shape {tuple(tensor.shape)}, expected {parameter.shape}.")
        return tensor

    return TensorSpec(parameter.shape, build)


def emit(program: Program, source: Source, lr: float, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of everything the artefact holds, one at a time, in `dtype`.

    Rates and score vectors are in fp32 or better.
    """
    for name, spec in specs(program, source, lr).items():
        yield name, contiguous(spec.build, stored_dtype(name, dtype))


def stored_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which the tensor of that name is stored, for a simulator of `dtype`."""
    if dtype in (torch.bfloat16, torch.float16) and name.startswith(FULL_PRECISION):
        return torch.float32
    return dtype


def contiguous(build: Callable[[], Tensor], dtype: torch.dtype) -> Tensor:
    """Return the tensor on the CPU, in memory of its own, whatever the auxiliary lies on and shares."""
    # A view would keep the checkpoint's whole tensor, and safetensors refuses tensors that share memory.
    return build().detach().to("cpu", dtype).clone(memory_format=torch.contiguous_format)
