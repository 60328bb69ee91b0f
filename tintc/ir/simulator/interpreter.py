"""The simulator dialect's interpreter: runs a program op by op, in the dtype of its tensors (fp64 by definition)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from tintc.ir.core import Op, Program, Value
from tintc.ir.inputs import Inputs
from tintc.ir.liveness import needed_ops
from tintc.ir.simulator.base import Interpretation, SimOp


def interpret(
    program: Program,
    tensors: Mapping[str, Tensor],
    inputs: Inputs,
    outputs: tuple[str, ...] = ("logits",),
    inner_lr: Tensor | None = None,
    watch: Callable[[SimOp, Interpretation, tuple[Any, ...]], None] | None = None,
) -> dict[str, Tensor]:
    """The named outputs of an unrolled program, from the simulator's state dict. Floating tensors are taken in fp64.

    watch: is called with every op, the run and the op's operands.
    """
    exact = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    run = Interpretation(exact, inputs, inner_lr)
    values: dict[Value, Any] = {}
    for op in needed(program, outputs):
        assert isinstance(op, SimOp)
        operands = tuple(values[operand] for operand in op.operands)
        if watch is not None:
            watch(op, run, operands)
        result = op.interpret(run, *operands)
        values.update(zip(op.results, result if len(op.results) > 1 else (result,), strict=True))
    return {label: values[program.outputs[label]] for label in outputs}


def needed(program: Program, outputs: tuple[str, ...]) -> list[Op]:
    """The ops that the named outputs depend on, in program order."""
    return needed_ops(program.ops, (program.outputs[label] for label in outputs))
