"""A program as text."""

from __future__ import annotations

from typing import Any

from tintc.ir.attributes import print_attributes
from tintc.ir.core import Block, Op, Parameter, Program


def print_program(program: Program) -> str:
    """Return the program as text."""
    lines = [f"{program.dialect}.program {{{print_attributes(program.attributes)}}}", ""]
    for name, parameter in program.parameters.items():
        lines.append(_parameter_line(name, parameter))
    if program.parameters:
        lines.append("")
    _print_ops(program.ops, lines, "")
    lines.append("")
    for label, value in program.outputs.items():
        lines.append(f"return {label} = {value}")
    return "\n".join(lines) + "\n"


def _parameter_line(name: str, parameter: Parameter) -> str:
    shape = "x".join(map(str, parameter.shape))
    attributes: dict[str, Any] = {"source": parameter.source}
    if parameter.transpose:
        attributes["transpose"] = True
    if parameter.rows is not None:
        attributes["rows"] = parameter.rows
    if parameter.stacked:
        attributes["stacked"] = True
    return f"parameter @{name} {{{print_attributes(attributes)}}} : {shape}"


def _print_ops(ops: list[Op], lines: list[str], indent: str) -> None:
    for op in ops:
        results = ", ".join(map(str, op.results))
        line = f"{op.opname}({', '.join(map(str, op.operands))})"
        if op.results:
            line = f"{results} = {line}"
        attributes = op.attributes()
        if attributes:
            line += f" {{{print_attributes(attributes)}}}"
        if op.results:
            line += f" : {', '.join(str(result.type) for result in op.results)}"
        lines.append(indent + line)
        body: Block | None = getattr(op, "body", None)
        if body is not None:
            lines.append(f"{indent}({', '.join(map(str, body.arguments))}) {{")
            _print_ops(body.ops, lines, indent + "  ")
            lines.append(f"{indent}  yield {', '.join(map(str, body.yields))}")
            lines.append(f"{indent}}}")
