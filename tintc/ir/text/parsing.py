"""A text as a program: every line is read by one pattern, and refused by its number if it does not match."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from tintc.errors import IRError
from tintc.ir.attributes import DIGITS, AttributeTextError, as_tuples, is_a, parse_attributes
from tintc.ir.core import OPS, TYPE_KINDS, Block, Op, Parameter, Program, Type, Value

NAME = r"[A-Za-z0-9_.\-]+"
DIMS = rf"[0-9]{{1,{DIGITS}}}(?:x[0-9]{{1,{DIGITS}}})*"
VALUES = rf"(?:%{NAME}(?:, %{NAME})*)?"
TYPE = re.compile(rf"(?P<kind>{'|'.join(TYPE_KINDS)})<(?P<dims>{DIMS})(?P<parts>(?:, \w+)*)>")
OP_LINE = re.compile(
    rf"(?:(?P<results>%{NAME}(?:, %{NAME})*) = )?(?P<opname>\w+\.\w+)\((?P<operands>{VALUES})\)(?P<rest>.*)$"
)
COMMENT = re.compile(r'("(?:[^"\\]|\\.)*")|//.*')
"""A comment, or a string (kept), which may hold two slashes."""
BLOCK_OPEN = re.compile(rf"\((?P<arguments>{VALUES})\) \{{$")


def parse_program(text: str) -> Program:
    """Return the program that a text describes.

    Raises `IRError`, naming the line, for anything that does not parse, and for a program that does not verify.
    """
    return _Parser(text).program().verify()


class _Parser:
    """Reads a text line by line; `at` is the index of the current one."""

    def __init__(self, text: str):
        numbered = ((number, COMMENT.sub(r"\1", line).strip()) for number, line in enumerate(text.splitlines(), 1))
        self.lines = [(number, line) for number, line in numbered if line]
        self.at = 0

    def fail(self, why: str) -> IRError:
        """Return the error for the current line."""
        number = 1
        line = ""
        if self.lines:
            number, line = self.lines[min(self.at, len(self.lines) - 1)]
        if len(line) > 200:
            line = f"{line[:200]}..."
        return IRError(f"Program text, line {number}: {why}: {line!r}.")

    def peek(self) -> str:
        """Return the current line, empty at the end."""
        if self.at == len(self.lines):
            return ""
        return self.lines[self.at][1]

    def program(self) -> Program:
        match = re.match(r"(\w+)\.program \{(.*)\}$", self.peek())
        if match is None:
            raise self.fail("a program starts with '<dialect>.program {...}'")
        program = Program(match[1], self.attributes(match[2]))
        self.at += 1
        while self.peek().startswith("parameter "):
            self.parameter(program)
        scope: dict[str, Value] = {}
        program.ops = self.ops(scope)
        while self.peek().startswith("return "):
            match = re.match(rf"return (\w+) = %({NAME})$", self.peek())
            if match is None or match[2] not in scope:
                raise self.fail("expected 'return label = %value' with a value defined above")
            if match[1] in program.outputs:
                raise self.fail(f"the output {match[1]!r} stands there twice")
            program.outputs[match[1]] = scope[match[2]]
            self.at += 1
        if self.peek():
            raise self.fail("unexpected text")
        return program

    def parameter(self, program: Program) -> None:
        """Add the parameter of the current line to the program."""
        match = re.match(rf"parameter @({NAME}) \{{(.*)\}} : ({DIMS})$", self.peek())
        if match is None:
            raise self.fail("expected 'parameter @name {source=...} : 1x2'")
        if match[1] in program.parameters:
            raise self.fail(f"the parameter @{match[1]} stands there twice")
        attributes = self.attributes(match[2])
        if not set(attributes) <= {"source", "transpose", "rows", "stacked"} or "source" not in attributes:
            raise self.fail("a parameter has 'source' and may have 'transpose', 'rows' and 'stacked'")
        flags = [attributes.get(name, False) for name in ("transpose", "stacked")]
        if not isinstance(attributes["source"], str) or not all(isinstance(flag, bool) for flag in flags):
            raise self.fail("the source of a parameter is a string, and 'transpose' and 'stacked' are true or false")
        rows = attributes.get("rows")
        if rows is not None and not _is_rows(rows):
            raise self.fail("the rows of a parameter are runs [start, stop] or [start, stop, step]")
        program.parameters[match[1]] = Parameter(
            source=attributes["source"],
            shape=_sizes(match[3]),
            transpose=flags[0],
            rows=as_tuples(rows),
            stacked=flags[1],
        )
        self.at += 1

    def attributes(self, text: str) -> dict[str, Any]:
        """Return ``a=1, b="x"`` as a dictionary of JSON values."""
        try:
            return parse_attributes(text)
        except AttributeTextError as error:
            raise self.fail(str(error)) from error

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
        names = _names(match["results"])
        if len(names) != len(types):
            raise self.fail(f"{len(names)} results but {len(types)} types")
        fields = {f.name: f for f in cls.attribute_fields()}
        unknown = sorted(set(attributes) - set(fields))
        required = [name for name, f in fields.items() if f.default is dataclasses.MISSING and name not in attributes]
        if unknown:
            raise self.fail(f"unknown attributes {unknown}")
        if required:
            raise self.fail(f"missing attributes {required}")
        for name, value in attributes.items():
            if not is_a(value, str(fields[name].type)):
                raise self.fail(f"attribute {name!r} must be of type {fields[name].type}")
        operands = self.lookup(match["operands"], scope)
        results = tuple(Value(name, kind) for name, kind in zip(names, types, strict=True))
        self.at += 1
        extra: dict[str, Any] = {}
        if "body" in {f.name for f in dataclasses.fields(cls)}:
            extra["body"] = self.block(scope, operands)
        for value in results:
            scope[value.name] = value
        values = {name: as_tuples(value) for name, value in attributes.items()}
        return cls(operands=operands, results=results, **values, **extra)

    def rest(self, text: str) -> tuple[dict[str, Any], list[Type]]:
        """Return (attributes, result types) of what follows an op's operands."""
        match = re.match(r"(?: \{(?P<attributes>.*)\})?(?: : (?P<types>\w+<.*))?$", text)
        if match is None:
            raise self.fail("expected '{attributes} : types' after the operands")
        types: list[Type] = []
        if match["types"] is not None:
            types = self.types(match["types"])
        return self.attributes(match["attributes"] or ""), types

    def types(self, text: str) -> list[Type]:
        """Return the types of a list ``tokens<4>, linear<3x4, bias>``."""
        types: list[Type] = []
        position = 0
        while True:
            match = TYPE.match(text, position)
            if match is None:
                raise self.fail(
                    f"expected a type, such as tokens<32> or linear<8x32, bias>, at {text[position : position + 40]!r}"
                )
            types.append(Type(match["kind"], _sizes(match["dims"]), tuple(match["parts"].split(", ")[1:])))
            position = match.end()
            if position == len(text):
                return types
            if not text.startswith(", ", position):
                raise self.fail("types are separated by ', '")
            position += 2

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
        match = re.match(rf"yield ({VALUES})$", self.peek())
        if match is None:
            raise self.fail("a block ends in 'yield %value, ...'")
        yields = self.lookup(match[1], inner)
        self.at += 1
        if self.peek() != "}":
            raise self.fail("expected '}'")
        self.at += 1
        return Block(arguments, ops, yields)


def _is_rows(rows: Any) -> bool:
    """Return True for a list of runs of two or three integers, the third of which, a step, is above zero."""
    if not is_a(rows, "tuple[tuple[int, ...], ...]"):
        return False
    return all(len(run) == 2 or (len(run) == 3 and run[2] > 0) for run in rows)


def _names(text: str | None) -> list[str]:
    """Return the names in a list ``%a, %b``."""
    if not text:
        return []
    return [value.removeprefix("%") for value in text.split(", ")]


def _sizes(text: str) -> tuple[int, ...]:
    """Return ``3x4`` as (3, 4)."""
    return tuple(int(size) for size in text.split("x"))
