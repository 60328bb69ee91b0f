"""The simulator dialect's interpreter: runs a program op by op, in fp64 (which defines what is right) or another type.

Weights, stored or updated, are made anew for every op that reads them, and a token value goes when nothing reads it any
more. So what is held grows with the text, not with the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from tintc.ir.core import Op, Program, Value
from tintc.ir.inputs import Inputs
from tintc.ir.lazy import Lazy
from tintc.ir.liveness import last_reads, needed_ops
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.semantics import Interpretation


def interpret(
    program: Program,
    tensors: Mapping[str, Tensor],
    inputs: Inputs,
    outputs: tuple[str, ...] = ("logits",),
    inner_lr: Tensor | None = None,
    watch: Callable[[SimOp, Interpretation, tuple[Any, ...]], None] | None = None,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Any]:
    """Return the named outputs of an unrolled program, from the simulator's state dict. Floating tensors are taken in
    `dtype`.

    watch: is called with every op, the run and the op's operands.
    """
    run = Interpretation(_in_dtype(tensors, dtype), inputs, inner_lr)
    ops = cast(list[SimOp], needed(program, outputs))
    makers = {op.result: op for op in ops if _makes_weights(op)}
    wanted = [program.outputs[label] for label in outputs]
    last = last_reads(ops, _token_values(wanted, makers), lambda op: _token_values(op.operands, makers))
    values: dict[Value, Any] = {}

    def find(value: Value) -> Any:
        if value in makers:
            return makers[value].interpret(run, *map(find, makers[value].operands))
        return values[value]

    for op in ops:
        operands = tuple(map(find, op.operands))
        if watch is not None:
            watch(op, run, operands)
        if not _makes_weights(op):
            result = op.interpret(run, *operands)
            if len(op.results) == 1:
                result = (result,)
            values.update(zip(op.results, result, strict=True))
        for value in last[op]:
            values.pop(value, None)
    return {label: find(value) for label, value in zip(outputs, wanted, strict=True)}


def needed(program: Program, outputs: tuple[str, ...]) -> list[Op]:
    """Return the ops that the named outputs depend on, in program order."""
    return needed_ops(program.ops, (program.outputs[label] for label in outputs))


def _in_dtype(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Mapping[str, Tensor]:
    """Return the tensors, floating ones in `dtype` and made when they are read."""

    def take(name: str) -> Tensor:
        tensor = tensors[name]
        if tensor.is_floating_point():
            return tensor.to(dtype)
        return tensor

    return Lazy(tensors, take)


def _makes_weights(op: Op) -> bool:
    """Return True if the op's result are weights."""
    return len(op.results) == 1 and op.result.type.is_weights


def _token_values(values: Iterable[Value], makers: Mapping[Value, Op]) -> Iterator[Value]:
    """Yield the values themselves, and in place of weights the token values that they are made of."""
    for value in values:
        if value in makers:
            yield from _token_values(makers[value].operands, makers)
        else:
            yield value
