"""`Builder`: appends ops to a program, with readable unique names taken from module paths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.ir.auxiliary import Concat, Select
from tintc.ir.auxiliary.base import AuxOp
from tintc.ir.columns import runs_of
from tintc.ir.core import Parameter, Program, Type, Value, tokens
from tintc.ir.names import Names
from tintc.ir.routed import routed

FORBIDDEN = re.compile(r"[^A-Za-z0-9_.\-]")


@dataclass(frozen=True)
class Placed:
    """Where the ops of a program lie in a graph.

    values: the program's value at every node that a rule took, and at those that were given; inputs: of nodes that a
    rule took, those whose values its op reads.
    """

    values: dict[Node, Value]
    inputs: dict[Node, tuple[Node, ...]]


class Builder:
    """Grows `program` op by op; `graph` says where nodes came from and what parameters look like.

    rules: for every value of the program, by its name, the rule that made it; inner: see `Recognised`.
    """

    def __init__(self, graph: CapturedGraph):
        self.graph = graph
        self.program = Program("aux")
        self.rules: dict[str, str] = {}
        self.inner: dict[Node, Placed] = {}
        self._names = Names(".")
        self._rule = ""

    @contextmanager
    def made_by(self, rule: str) -> Iterator[None]:
        """Note that a rule makes the ops that are emitted meanwhile."""
        kept = self._rule
        self._rule = kept or rule
        try:
            yield
        finally:
            self._rule = kept

    def emit(
        self, op: type[AuxOp], node: Node, operands: tuple[Value, ...], type_: Type, hint: str = "", **attributes: Any
    ) -> Value:
        """Append an op and return its result, named after the node's module (and `hint`, if the module has many)."""
        result = Value(self._name(node, hint), type_)
        self.rules[result.name] = self._rule
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

    def parameter(self, name: str, transpose: bool = False, stacked: bool = False) -> str:
        """Declare that the program reads a tensor, and return the parameter's name.

        A tensor computed from one parameter goes by that parameter's name, since it stands in its place. stacked: its
        first dimension counts experts, and each one's matrix is transposed.
        """
        shape = tuple(self.graph.tensors[name].shape)
        if transpose:
            shape = (*shape[:-2], shape[-1], shape[-2])
        parameter = Parameter(name, shape, transpose, stacked=stacked)
        stem = self.graph.origins.get(name, name)
        alias = stem
        number = 1
        while self.program.parameters.setdefault(alias, parameter) != parameter:
            if self.program.parameters[alias].source == name:
                stem = f"{stem}.t"  # the same tensor, read the other way round
                alias = stem
            else:
                number += 1
                alias = f"{stem}_{number}"  # another tensor computed from the same parameter
        return alias

    def within(self, graph: CapturedGraph, node: Node, experts: int, chosen: int) -> Builder:
        """Return a builder that appends to the same program what a gate's graph does to vectors of chosen experts.

        node: of the experts; its module names the values.
        """
        return _GateBuilder(self, graph, node, experts, chosen)

    def _name(self, node: Node, hint: str) -> str:
        words = [word for word in (self.graph.path(node), hint) if word]
        return self._names.fresh(FORBIDDEN.sub("_", ".".join(words)) or "value")


class _GateBuilder(Builder):
    """Emits routed values in place of tokens."""

    def __init__(self, outer: Builder, graph: CapturedGraph, node: Node, experts: int, chosen: int):
        super().__init__(graph)
        self.program = outer.program
        self.rules = outer.rules
        self._names = outer._names
        self._rule = outer._rule
        self._outer = outer
        self._node = node
        self._routed = (experts, chosen)

    def emit(
        self, op: type[AuxOp], node: Node, operands: tuple[Value, ...], type_: Type, hint: str = "", **attributes: Any
    ) -> Value:
        return super().emit(op, node, operands, routed(*self._routed, type_.width), hint, **attributes)

    def _name(self, node: Node, hint: str) -> str:
        return self._outer._name(self._node, hint or "gate")
