"""Which weights a program holds: the auxiliary's layers by name, as simulator values."""

from __future__ import annotations

from dataclasses import dataclass

from tintc.errors import IRError
from tintc.ir.auxiliary import AuxOp, Linear, Norm
from tintc.ir.core import Program, Type


@dataclass(frozen=True)
class Layer:
    """A linear layer or norm of the auxiliary: `name` without the tensor's own suffix, parameter names by part."""

    name: str
    type: Type
    parts: dict[str, str]


def layer_of(program: Program, op: AuxOp, bias_copies: int = 1) -> Layer | None:
    """The weights of an op, None if it has none.

    bias_copies: column tiles that each hold ``bias / bias_copies`` (more than one only in ``paper-code``).
    """
    if isinstance(op, Linear):
        bias = (f"bias{bias_copies}" if bias_copies > 1 else "bias",) if op.bias else ()
        kind = Type("linear", program.parameters[op.weight].shape, bias)
        parts = {"weight": op.weight} | ({"bias": op.bias} if op.bias else {})
        return Layer(_stem(op.weight), kind, parts)
    if isinstance(op, Norm) and (op.weight or op.bias):
        parts = ({"gain": op.weight} if op.weight else {}) | ({"bias": op.bias} if op.bias else {})
        width = op.result.type.width
        for name in parts.values():
            if program.parameters[name].shape != (width,):
                raise IRError(f"{name} has shape {program.parameters[name].shape}, the norm has width {width}.")
        return Layer(_stem(op.weight or op.bias), Type("norm", (width,), tuple(parts)), parts)
    return None


def _stem(name: str) -> str:
    return name.removesuffix(".weight").removesuffix(".bias")
