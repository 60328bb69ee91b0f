"""The auxiliary dialect's interpreter: the semantics, slow and obvious, in fp64.

`forward` runs the decoder; `simulate` runs the whole of a simulator's job on it, with the approximate gradients of the
construction: forward, loss gradient, backward, descent, N times, forward. Everything else in the package is tested
against these two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Context, Gradients
from tintc.ir.auxiliary.linear import Linear, Logits
from tintc.ir.auxiliary.steps import step_factors
from tintc.ir.core import Parameter, Program, Value
from tintc.ir.functions import FiniteDifference
from tintc.ir.inputs import Inputs
from tintc.ir.lazy import Lazy
from tintc.ir.liveness import last_reads
from tintc.ir.losses import loss_gradient
from tintc.option_facts import DESCENDS

EXACT = FiniteDifference("token", 1e-3)


@dataclass(frozen=True)
class Descent:
    """Options of the simulated training (construction.md, section 10).

    n_update_layers None: all layers; semantics: ``exact`` or ``paper-code``; groups: of parameters, those that descend;
    full: whether attention's scores and routing are differentiated; momentum: of the running sum of gradients; norm_of:
    whose norm a step divides by (`tintc.option_facts.NORMALIZE`), None: no norm; decay: towards the tensors that
    are given.
    """

    lr: float
    n_steps: int = 1
    n_update_layers: int | None = None
    loss: str = "ce"
    semantics: str = "exact"
    difference: FiniteDifference = EXACT
    groups: frozenset[str] = DESCENDS
    full: bool = False
    momentum: float = 0.0
    norm_of: str | None = None
    decay: float = 0.0


def view(parameter: Parameter, tensor: Tensor) -> Tensor:
    """Return the checkpoint's `tensor` as the parameter sees it: transposed, then rows selected."""
    if parameter.transpose:
        tensor = tensor.transpose(-2, -1)
    if parameter.rows is not None:
        dim = int(parameter.stacked)
        tensor = torch.cat([_run(tensor, dim, *run) for run in parameter.rows], dim)
    return tensor


def viewed_rows(parameter: Parameter, tensor: Tensor) -> Iterator[tuple[slice, Tensor, slice]]:
    """Yield the rows of the checkpoint's tensor that a parameter views, run by run: which, the rows themselves, and
    where they stand among the parameter's own. Rows of zeros are left out: they are not the checkpoint's.

    Rows are counted in dimension 0, or 1 of a stack of experts.
    """
    dim = int(parameter.stacked)
    if parameter.transpose:
        tensor = tensor.transpose(-2, -1)
    at = 0
    for start, stop, *step in parameter.rows or ((0, parameter.shape[dim]),):
        taken = slice(start, stop, *step)
        own = slice(at, at + len(range(start, stop, *step)))
        at = own.stop
        if start >= 0:
            yield taken, tensor[(slice(None),) * dim + (taken,)], own


def _run(tensor: Tensor, dim: int, start: int, stop: int, step: int = 1) -> Tensor:
    """Return the rows from start to stop, counted in dimension `dim`; zeros for negative numbers."""
    if start < 0:
        return tensor.new_zeros(*tensor.shape[:dim], stop - start, *tensor.shape[dim + 1 :])
    return tensor[(slice(None),) * dim + (slice(start, stop, step),)]


def load(program: Program, source: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Return every parameter of `program` from the checkpoint `source`, in `dtype`."""
    return dict(loading(program, source, dtype))


def loading(
    program: Program, source: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | None = None
) -> Lazy:
    """Return the same, each loaded whenever it is read, onto the device (None: where it is)."""

    def make(name: str) -> Tensor:
        parameter = program.parameters[name]
        return view(parameter, source[parameter.source]).to(device, dtype)

    return Lazy(program.parameters, make)


def forward(program: Program, tensors: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
    """Return the decoder's logits ``[B, T, V]``."""
    context = Context(tensors, inputs, EXACT)
    last = last_reads(program.ops, program.outputs.values())
    values: dict[Value, Tensor] = {}
    for op in program.ops:
        assert isinstance(op, AuxOp)
        values[op.result] = op.evaluate(context, *(values[operand] for operand in op.operands))
        for value in last[op]:
            del values[value]
    return values[program.outputs["logits"]]


def descending(op: AuxOp, n_layers: int, n_update_layers: int, groups: frozenset[str]) -> set[str]:
    """Return the fields that name the parameters of this op that the descent updates (construction.md, section 10).

    What lies outside the layers descends, if asked to, where all layers do.
    """
    if op.role == "final" or op.layer >= n_layers - n_update_layers:
        return op.in_groups(groups)
    if op.layer < 0 and n_update_layers == n_layers:
        return op.in_groups(groups & {"outside"})
    return set()


def simulate(
    program: Program, tensors: Mapping[str, Tensor], inputs: Inputs, descent: Descent
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return (logits before the descent, logits after, updated parameters ``[B, *shape]`` by name)."""
    n_layers = program.attributes["n_layers"]
    layers = descent.n_update_layers
    if layers is None:
        layers = n_layers
    updated = dict(tensors)
    sums: Gradients = {}
    before = None
    for step in range(descent.n_steps):
        context = Context(updated, inputs, descent.difference, step, descent.full)
        values = _values(program, context)
        if before is None:
            before = values[program.outputs["logits"]]
        gradients = _gradients(program, context, values, descent, layers)
        sums = {name: descent.momentum * sums.get(name, 0) + gradient for name, gradient in gradients.items()}
        factors = step_factors(program, sums, descent.norm_of)
        for name, total in sums.items():
            away = updated[name] - tensors[name]
            updated[name] = updated[name] - descent.lr * (factors[name] * total + descent.decay * away)
    after = _values(program, Context(updated, inputs, descent.difference))[program.outputs["logits"]]
    assert before is not None
    return before, after, updated


def _values(program: Program, context: Context) -> dict[Value, Tensor]:
    """Return every value of the program, ``[B, T, width]``."""
    values: dict[Value, Tensor] = {}
    for op in program.ops:
        assert isinstance(op, AuxOp)
        values[op.result] = op.evaluate(context, *(values[operand] for operand in op.operands))
    return values


def _gradients(
    program: Program, context: Context, values: dict[Value, Tensor], descent: Descent, layers: int
) -> Gradients:
    """Return the gradients of the parameters that descend; a value used twice receives the sum of its users'
    gradients."""
    adjoint: dict[Value, Tensor] = {}
    gradients: Gradients = {}
    for op in reversed(program.ops):
        assert isinstance(op, AuxOp)
        operands = [values[operand] for operand in op.operands]
        if isinstance(op, Logits):
            head = context.parameter(op.weight)
            bias = context.optional(op.bias)
            dx = loss_gradient(descent.loss, operands[0], head, bias, context.inputs.next_ids, op.logit_map)
            pulled: tuple[Tensor | None, ...] = (dx * context.inputs.loss_positions_of(context.step)[..., None],)
            own: Gradients = {}
        elif op.result in adjoint:
            pulled, own = op.pullback(context, adjoint.pop(op.result), *operands)
        else:
            continue
        for operand, gradient in zip(op.operands, pulled, strict=True):
            if gradient is not None:
                adjoint[operand] = adjoint.get(operand, 0) + gradient
        stepped = descending(op, program.attributes["n_layers"], layers, descent.groups)
        names = {name for key, name in op.parameters().items() if key in stepped}
        for name, gradient in own.items():
            if name in names:
                if isinstance(op, Linear) and name == op.bias:
                    gradient = _bias_rate(program, op, descent) * gradient
                gradients[name] = gradients.get(name, 0) + gradient
    return gradients


def _bias_rate(program: Program, op: Linear, descent: Descent) -> int:
    """Return how many times the bias receives the step.

    The authors' code stores the bias of a layer that is m widths wide m times over, and updates every copy.
    """
    if descent.semantics == "exact":
        return 1
    return -(-op.operands[0].type.width // program.attributes["width"])
