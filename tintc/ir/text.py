"""Both dialects as text: `print_program` and `parse_program` are inverses.

One op a line::

    %h.0.ln = aux.norm(%embed) {kind="layer", eps=1e-05, weight="h.0.ln_1.weight"} : tokens<48>

Attribute values are JSON; an attribute at its default is not shown. `//` starts a comment. A `sim.repeat` carries its
block in braces on the lines below it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from tintc.errors import IRError
from tintc.ir.core import OPS, Block, Op, Parameter, Program, Type, Value

NAME = r"[A-Za-z0-9_.\-]+"
TYPE = re.compile(r"(\w+)<(\d+(?:x\d+)*)((?:, \w+)*)>")
OP_LINE = re.compile(
    rf"(?:(?P<results>%{NAME}(?:, %{NAME})*) = )?(?P<opname>\w+\.\w+)\((?P<operands>[^)]*)\)(?P<rest>.*)$"
)
COMMENT = re.compile(r'("(?:[^"\\]|\\.)*")|//.*')
"""A comment, or a string (kept), which may hold two slashes."""
BLOCK_OPEN = re.compile(rf"\((?P<arguments>(?:%{NAME}(?:, %{NAME})*)?)\) \{{$")
KINDS: dict[str, type | tuple[type, ...]] = {"int": int, "float": (int, float), "str": str, "tuple": list}
"""JSON types of attributes, by the annotation of their field."""


def print_program(program: Program) -> str:
    """Return the program as text."""
    lines = [f"{program.dialect}.program {{{_attributes(program.attributes)}}}", ""]
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
    return f"parameter @{name} {{{_attributes(attributes)}}} : {shape}"


def _attributes(attributes: dict[str, Any]) -> str:
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in attributes.items())


def _print_ops(ops: list[Op], lines: list[str], indent: str) -> None:
    for op in ops:
        results = ", ".join(map(str, op.results))
        head = f"{results} = " if results else ""
        attributes = op.attributes()
        shown = f" {{{_attributes(attributes)}}}" if attributes else ""
        types = ", ".join(str(result.type) for result in op.results)
        tail = f" : {types}" if types else ""
        lines.append(f"{indent}{head}{op.opname}({', '.join(map(str, op.operands))}){shown}{tail}")
        body: Block | None = getattr(op, "body", None)
        if body is not None:
            lines.append(f"{indent}({', '.join(map(str, body.arguments))}) {{")
            _print_ops(body.ops, lines, indent + "  ")
            lines.append(f"{indent}  yield {', '.join(map(str, body.yields))}")
            lines.append(f"{indent}}}")


def parse_program(text: str) -> Program:
    """Return the program that a text describes.

    Raises `IRError`, naming the line, for anything that does not parse, and for a program that does not verify.
    """
    return _Parser(text).program().verify()


class _Parser:
    def __init__(self, text: str):
        numbered = ((number, COMMENT.sub(r"\1", line).strip()) for number, line in enumerate(text.splitlines(), 1))
        self.lines = [(number, line) for number, line in numbered if line]
        self.at = 0

    def fail(self, why: str) -> IRError:
        """Return the error for the current line."""
        number, line = self.lines[min(self.at, len(self.lines) - 1)] if self.lines else (1, "")
        return IRError(f"Program text, line {number}: {why}: {line!r}.")

    def peek(self) -> str:
        """Return the current line, empty at the end."""
        return self.lines[self.at][1] if self.at < len(self.lines) else ""

    def program(self) -> Program:
        match = re.match(r"(\w+)\.program \{(.*)\}$", self.peek())
        if match is None:
            raise self.fail("a program starts with '<dialect>.program {...}'")
        program = Program(match[1], self.attributes(match[2]))
        self.at += 1
        while self.peek().startswith("parameter "):
            name, parameter = self.parameter()
            program.parameters[name] = parameter
        scope: dict[str, Value] = {}
        program.ops = self.ops(scope)
        while self.peek().startswith("return "):
            match = re.match(rf"return (\w+) = %({NAME})$", self.peek())
            if match is None or match[2] not in scope:
                raise self.fail("expected 'return label = %value' with a value defined above")
            program.outputs[match[1]] = scope[match[2]]
            self.at += 1
        if self.peek():
            raise self.fail("unexpected text")
        return program

    def parameter(self) -> tuple[str, Parameter]:
        match = re.match(rf"parameter @({NAME}) \{{(.*)\}} : (\d+(?:x\d+)*)$", self.peek())
        if match is None:
            raise self.fail("expected 'parameter @name {source=...} : 1x2'")
        attributes = self.attributes(match[2])
        rows = attributes.get("rows")
        known = set(attributes) <= {"source", "transpose", "rows"} and "source" in attributes
        if not known:
            raise self.fail("a parameter has 'source' and may have 'transpose' and 'rows'")
        parameter = Parameter(
            source=attributes["source"],
            shape=tuple(int(size) for size in match[3].split("x")),
            transpose=attributes.get("transpose", False),
            rows=None if rows is None else _tuples(rows),
        )
        self.at += 1
        return match[1], parameter

    def attributes(self, text: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        decoder = json.JSONDecoder()
        position = 0
        while position < len(text):
            match = re.compile(r"(\w+)=").match(text, position)
            if match is None:
                raise self.fail("attributes read 'name=<JSON value>, ...'")
            try:
                found[match[1]], position = decoder.raw_decode(text, match.end())
            except json.JSONDecodeError as error:
                raise self.fail(f"attribute {match[1]!r} is not JSON") from error
            if position < len(text):
                if not text.startswith(", ", position):
                    raise self.fail("attributes are separated by ', '")
                position += 2
        return found

    def ops(self, scope: dict[str, Value]) -> list[Op]:
        ops: list[Op] = []
        while re.match(rf"(%{NAME}|\w+\.\w+\()", self.peek()):
            ops.append(self.op(scope))
        return ops

    def op(self, scope: dict[str, Value]) -> Op:
        match = OP_LINE.match(self.peek())
        if match is None:
            raise self.fail("expected '%result = dialect.op(%operand, ...) {...} : type'")
        cls = OPS.get(match["opname"])
        if cls is None:
            raise self.fail(f"there is no op {match['opname']!r}")
        attributes, types = self.rest(match["rest"])
        names = _names(match["results"] or "")
        if len(names) != len(types):
            raise self.fail(f"{len(names)} results but {len(types)} types")
        fields = {f.name: f for f in cls.attribute_fields()}
        unknown = sorted(set(attributes) - set(fields))
        required = [name for name, f in fields.items() if f.default is dataclasses.MISSING and name not in attributes]
        if unknown or required:
            raise self.fail(f"unknown attributes {unknown}" if unknown else f"missing attributes {required}")
        for name, value in attributes.items():
            if not isinstance(value, KINDS[str(fields[name].type).split("[")[0]]):
                raise self.fail(f"attribute {name!r} must be of type {fields[name].type}")
        operands = self.lookup(match["operands"], scope)
        results = tuple(Value(name, kind) for name, kind in zip(names, types, strict=True))
        self.at += 1
        extra: dict[str, Any] = {}
        if "body" in {f.name for f in dataclasses.fields(cls)}:
            extra["body"] = self.block(scope, operands)
        for value in results:
            scope[value.name] = value
        values = {name: _tuples(value) for name, value in attributes.items()}
        return cls(operands=operands, results=results, **values, **extra)

    def rest(self, text: str) -> tuple[dict[str, Any], list[Type]]:
        match = re.match(r"(?: \{(?P<attributes>.*)\})?(?: : (?P<types>\w+<.*>))?$", text)
        if match is None:
            raise self.fail("expected '{attributes} : types' after the operands")
        types = [
            Type(kind, tuple(int(size) for size in dims.split("x")), tuple(parts.split(", ")[1:]))
            for kind, dims, parts in TYPE.findall(match["types"] or "")
        ]
        return self.attributes(match["attributes"] or ""), types

    def lookup(self, text: str, scope: dict[str, Value]) -> tuple[Value, ...]:
        missing = [name for name in _names(text) if name not in scope]
        if missing:
            raise self.fail(f"%{missing[0]} is not defined above this line")
        return tuple(scope[name] for name in _names(text))

    def block(self, scope: dict[str, Value], operands: tuple[Value, ...]) -> Block:
        match = BLOCK_OPEN.match(self.peek())
        if match is None:
            raise self.fail("expected '(%argument, ...) {'")
        names = _names(match["arguments"])
        if len(names) != len(operands):
            raise self.fail(f"{len(operands)} operands but {len(names)} block arguments")
        arguments = tuple(Value(name, operand.type) for name, operand in zip(names, operands, strict=True))
        inner = scope | {value.name: value for value in arguments}
        self.at += 1
        ops = self.ops(inner)
        match = re.match(r"yield (.*)$", self.peek())
        if match is None:
            raise self.fail("a block ends in 'yield %value, ...'")
        yields = self.lookup(match[1], inner)
        self.at += 1
        if self.peek() != "}":
            raise self.fail("expected '}'")
        self.at += 1
        return Block(arguments, ops, yields)


def _names(text: str) -> list[str]:
    """Return the names in a list ``%a, %b``."""
    return [part.strip().removeprefix("%") for part in text.split(",") if part.strip()]


def _tuples(value: Any) -> Any:
    """Return JSON lists as tuples, so that attributes compare and hash."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value
