"""`reading_biases`: the program whose short convolutions read at padding what linear layers make of zero.

A graph is captured without padding, and so does not say what padding is to a convolution before the text begins. Most
decoders put zeros there. Some put them in front of the linear layer instead, whose bias the convolution then reads.
`check_agreement` finds out which of the two a model does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from tintc.frontend.graph.captured import CapturedGraph
from tintc.ir.auxiliary import Activation, Add, Concat, Convolution, Gate, Linear, Multiply, Scale, Select
from tintc.ir.auxiliary.base import Context
from tintc.ir.auxiliary.interpreter import EXACT, loading
from tintc.ir.core import Op, Parameter, Program, Value
from tintc.ir.inputs import resolve_inputs

PASSED = Select | Scale | Gate | Multiply | Activation | Add | Concat
"""What may lie between a linear layer and a convolution that reads it."""


@torch.no_grad()
def reading_biases(graph: CapturedGraph, program: Program) -> Program | None:
    """Return that program; None if it is the same, for no linear layer before a convolution has a bias.

    The vectors are constants, and become tensors of the graph.
    """
    producers = program.producers()
    device = next(iter(graph.tensors.values())).device
    inputs = resolve_inputs(torch.zeros(1, 1, dtype=torch.long, device=device))
    context = Context(loading(program, graph.tensors, torch.float64), inputs, EXACT)
    parameters = dict(program.parameters)
    ops: list[Op] = []
    for op in program.ops:
        if isinstance(op, Convolution):
            read = _of_zero(producers, context, op.operands[0])
            if read is not None and bool(read.any()):
                dtype = graph.tensors[program.parameters[op.weight].source].dtype
                name = graph.derive_constant("padding", read.flatten().to(dtype))
                parameters[name] = Parameter(name, tuple(graph.tensors[name].shape))
                op = replace(op, padding=name)
        ops.append(op)
    if len(parameters) == len(program.parameters):
        return None
    return Program(program.dialect, dict(program.attributes), parameters, ops, dict(program.outputs)).verify()


def _of_zero(producers: dict[Value, Op], context: Context, value: Value) -> Tensor | None:
    """Return a value ``[1, 1, W]`` where the linear layers that it is made of read zeros; None if it is made of
    something else."""
    op = producers[value]
    if isinstance(op, Linear):
        return op.evaluate(context, torch.zeros(1, 1, op.operands[0].type.width, dtype=torch.float64))
    if not isinstance(op, PASSED):
        return None
    operands = [_of_zero(producers, context, operand) for operand in op.operands]
    known = [operand for operand in operands if operand is not None]
    if len(known) < len(operands):
        return None
    evaluate: Callable[..., Tensor] = op.evaluate
    return evaluate(context, *known)
