"""`Builder`: appends ops to a program, with readable unique names taken from module paths."""

from __future__ import annotations

import re
from typing import Any

from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.ir.auxiliary.base import AuxOp
from tintc.ir.core import Parameter, Program, Type, Value
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

    def parameter(self, name: str, transpose: bool = False) -> str:
        """Declare that the program reads a tensor; returns the parameter's name.

        A tensor computed from one parameter goes by that parameter's name, since it stands in its place.
        """
        shape = tuple(self.graph.tensors[name].shape)
        wanted = Parameter(name, shape[::-1] if transpose else shape, transpose)
        alias = self.graph.origins.get(name, name)
        while self.program.parameters.setdefault(alias, wanted) != wanted:
            alias += ".t"
        return alias

    def _name(self, node: Node, hint: str) -> str:
        parts = [part for part in (self.graph.path(node), hint) if part]
        return self._names.fresh(FORBIDDEN.sub("_", ".".join(parts)) or "value")
