"""Rewrites that several rules of `canonicalise` make."""

from __future__ import annotations

from dataclasses import replace

from tintc.errors import IRError
from tintc.ir.auxiliary import AuxOp
from tintc.ir.core import Op, Program, Value, substitute
from tintc.ir.liveness import needed_ops


def drop_op(program: Program, op: Op, value: Value) -> None:
    """Remove an op; its users take `value` instead."""
    mapping = {op.results[0]: value}
    program.ops = [
        replace(other, operands=substitute(other.operands, mapping)) for other in program.ops if other is not op
    ]
    program.outputs = {label: mapping.get(output, output) for label, output in program.outputs.items()}


def remove_dead_code(program: Program) -> bool:
    """Remove ops and parameters that nothing uses. Return True if there were any.

    Raises `IRError` for an op of a parameter that the program, which may be somebody's text, does not declare.
    """
    kept = needed_ops(program.ops, program.outputs.values())
    names = [name for op in kept if isinstance(op, AuxOp) for name in op.parameters().values()]
    undeclared = sorted(set(names) - program.parameters.keys())
    if undeclared:
        raise IRError(f"The program names the parameter @{undeclared[0]}, which it does not declare.")
    changed = len(kept) < len(program.ops) or set(names) != set(program.parameters)
    program.ops, program.parameters = kept, {name: program.parameters[name] for name in names}
    return changed
