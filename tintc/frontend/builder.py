"""`Builder`: appends ops to a program, with readable unique names taken from module paths."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.ir.auxiliary import Concat, Select
from tintc.ir.auxiliary.base import AuxOp
from tintc.ir.columns import runs_of
from tintc.ir.core import Parameter, Program, Type, Value, tokens
from tintc.ir.names import Names

FORBIDDEN = re.compile(r"[^A-Za-z0-9_.\-]")


class Builder:
    """Grows `program` op by op; `graph` says where nodes came from and what parameters look like."""

    def __init__(self, graph: CapturedGraph):
        self.graph = graph
        self.program = Program("aux")
        self._names = Names(".")

    def emit(
        self, op: type[AuxOp], node: Node, operands: tuple[Value, ...], type_: Type, hint: str = "", **attributes: Any
    ) -> Value:
        """Append an op and return its result, named after the node's module (and `hint`, if the module has many)."""
        result = Value(self._name(node, hint), type_)
        self.program.ops.append(op(operands=operands, results=(result,), **attributes))
        return result

    def concatenate(self, node: Node, values: tuple[Value, ...], hint: str) -> Value:
        """Return the values side by side; a single value as it is."""
        if len(values) == 1:
            return values[0]
        width = sum(value.type.width for value in values)
        return self.emit(Concat, node, values, tokens(width), hint)

    def select(self, node: Node, value: Value, columns: Sequence[int], hint: str) -> Value:
        """Return the columns of a value; the value itself if they are all of its columns in order."""
        if list(columns) == list(range(value.type.width)):
            return value
        return self.emit(Select, node, (value,), tokens(len(columns)), hint, columns=runs_of(columns))

    def parameter(self, name: str, transpose: bool = False) -> str:
        """Declare that the program reads a tensor, and return the parameter's name.

        A tensor computed from one parameter goes by that parameter's name, since it stands in its place.
        """
        shape = tuple(self.graph.tensors[name].shape)
        if transpose:
            shape = shape[::-1]
        parameter = Parameter(name, shape, transpose)
        alias = self.graph.origins.get(name, name)
        while self.program.parameters.setdefault(alias, parameter) != parameter:
            alias += ".t"
        return alias

    def _name(self, node: Node, hint: str) -> str:
        words = [word for word in (self.graph.path(node), hint) if word]
        return self._names.fresh(FORBIDDEN.sub("_", ".".join(words)) or "value")
