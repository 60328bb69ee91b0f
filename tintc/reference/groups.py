"""The parameters that descend: the rows of a model's tensors that each group of a layer's parameters names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.errors import OptionError
from tintc.frontend.graph.captured import CapturedGraph
from tintc.ir.auxiliary import AuxOp, Experts, Linear, Norm
from tintc.ir.core import Parameter, Program
from tintc.lowering.pipeline import AUXILIARY_PASSES, run_passes
from tintc.options import Options
from tintc.reference.approximations import Approximations

OUTSIDE = "outside"
LINEAR = {
    "value": "values",
    "output": "out",
    "ffn": "ffn",
    "query": "queries",
    "key": "keys",
    "router": "router",
    "lora": "lora",
}
"""Groups of linear layers by the importer's role."""
NORMS = {
    "layer": ("norm-gain", "norm-bias"),
    "final": ("norm-gain", "norm-bias"),
    "qk": ("head-norm", "head-norm"),
    "heads": ("head-norm", "head-norm"),
    "embedding": (OUTSIDE, OUTSIDE),
}
"""Groups of a norm's gain and bias by its role."""


@dataclass(frozen=True)
class Member:
    """Rows of one tensor that belong to a group. layer: -1 for the final norm, 0 for what is outside the layers and
    descends where all do; copies: how many times the authors' code keeps this bias (1 for all else)."""

    where: Parameter
    group: str
    layer: int
    copies: int = 1

    def rows(self, tensor: Tensor) -> list[Tensor]:
        """Return views of the parts of ``tensor``, or of anything of its shape, that belong to the group."""
        if self.where.transpose:
            tensor = tensor.transpose(-2, -1)
        before = (slice(None),) * int(self.where.stacked)
        runs = self.where.rows or ((0, tensor.shape[len(before)]),)
        return [tensor[(*before, slice(*run))] for run in runs if run[0] >= 0]


def members(program: Program) -> Iterator[Member]:
    """Yield every parameter of the layers, and of norms and projections outside them, from an imported program."""
    program = run_passes(AUXILIARY_PASSES, program, Options())
    width = program.attributes["width"]
    parameters = program.parameters
    for op in program.ops:
        if isinstance(op, Linear | Experts) and op.role in LINEAR:
            group = LINEAR[op.role]
            yield Member(parameters[op.weight], group, op.layer)
            if op.bias:
                copies = 1
                if isinstance(op, Linear):
                    copies = -(-parameters[op.weight].shape[1] // width)
                yield Member(parameters[op.bias], group, op.layer, copies)
        elif isinstance(op, Norm) and op.role in NORMS:
            layer = op.layer
            if op.role == "embedding":
                layer = 0
            for name, group in zip((op.weight, op.bias), NORMS[op.role], strict=True):
                if name:
                    yield Member(parameters[name], group, layer)
        elif isinstance(op, Linear) and op.role == "projection":
            for name in op.parameters().values():
                yield Member(parameters[name], OUTSIDE, 0)


def layer_parameters(
    program: Program, origins: Mapping[str, str], tensors: Mapping[str, Tensor], n_update_layers: int
) -> set[str]:
    """Return the names of all parameters of the top layers and of the final norm, queries, keys and gains among them.

    origins: of constants that are computed from one parameter, its name; tensors: the model's parameters by name.
    Raises `OptionError` if the model has fewer layers.
    """
    program = run_passes(AUXILIARY_PASSES, program, Options())
    ops = [op for op in program.ops if isinstance(op, AuxOp)]
    n_layers = check_layers(n_update_layers, max((op.layer for op in ops), default=-1) + 1)
    names: set[str] = set()
    for op in ops:
        if op.layer >= n_layers - n_update_layers or op.role == "final":
            sources = [program.parameters[name].source for name in op.parameters().values()]
            names |= {origins.get(source, source) for source in sources}
    return names & tensors.keys()


def check_layers(wanted: int, n_layers: int) -> int:
    """Return the number of layers that a model has; raise `OptionError` unless so many of them can be updated."""
    if not 1 <= wanted <= n_layers:
        raise OptionError(f"Cannot update {wanted} layers: the model has {n_layers}; choose 1 to {n_layers}.")
    return n_layers


def origin_of(graph: CapturedGraph, name: str) -> str:
    """Return the parameter whose gradient a tensor's is: itself, or w where the tensor is w and a number."""
    origin = graph.origins.get(name)
    if origin is None:
        return name
    computed = graph.tensors[name].double()
    own = graph.tensors[origin].double()
    if computed.shape != own.shape:
        return name
    apart = computed - own
    rounding = 8 * torch.finfo(graph.tensors[name].dtype).eps * float(computed.abs().max())
    if float((apart - apart.mean()).abs().max()) > rounding:
        return name
    return origin


def factors(
    program: Program,
    graph: CapturedGraph,
    tensors: dict[str, Tensor],
    approximations: Approximations,
    n_update_layers: int | None,
) -> dict[str, Tensor]:
    """Return the factors of the gradients of tensors that descend: 1, 0 for rows that stay, m for tiled biases.

    tensors: the model's parameters by name; n_update_layers None: all. A gain that is a parameter and a number, such
    as ``1 + w``, has that parameter's gradient. Raises `OptionError` if the model has fewer layers, or computes a gain
    that descends in another way.
    """
    factors: dict[str, Tensor] = {}
    everything = list(members(program))
    n_layers = 1 + max((member.layer for member in everything), default=-1)
    wanted = n_update_layers
    if wanted is None:
        wanted = n_layers
    check_layers(wanted, n_layers)
    groups = frozenset(approximations.groups or ())
    for member in everything:
        if member.group in groups and (member.layer < 0 or member.layer >= n_layers - wanted):
            name = origin_of(graph, member.where.source)
            if name not in tensors:
                raise OptionError(
                    f"The gain {name.removeprefix('constant.')} is computed from a parameter, and is not it and a "
                    "number; explicit fine-tuning does not descend on such gains; leave out norm-gain."
                )
            factor = factors.setdefault(name, torch.zeros_like(tensors[name], dtype=torch.int16))
            copies = 1
            if approximations.tiled_bias:
                copies = member.copies
            for rows in member.rows(factor):
                rows.fill_(copies)
    return factors
