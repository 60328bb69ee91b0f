"""The base of lowering rules: all that the compiler knows of how one auxiliary op is simulated.

A rule stands in the file of its kind of op and registers itself with `@lowers`; there is no list of rules to add it to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from tintc.ir.auxiliary import AuxOp
from tintc.ir.core import Program, Value
from tintc.ir.simulator import SimOp
from tintc.lowering.rules.sweep import Sweep, WeightGroup
from tintc.options import Options

AuxT = TypeVar("AuxT", bound=AuxOp)


class Module(NamedTuple):
    """A simulator op to be, and its attributes."""

    kind: type[SimOp]
    attributes: dict[str, Any]


class Rule(Generic[AuxT]):
    """The lowering of one kind of auxiliary op."""

    def forward(self, op: AuxT) -> Module:
        """Return the module that runs the op forward, on its weights, if it has any, and its operands."""
        raise NotImplementedError(op.opname)

    def layer(self, program: Program, op: AuxT, options: Options) -> WeightGroup | None:
        """Return the op's weights, which prefixes hold; None if it has none."""
        return None

    def carriers(self, op: AuxT, options: Options) -> tuple[Value, ...]:
        """Return the operands that receive a gradient."""
        return op.operands

    def visit(self, sweep: Sweep, op: AuxT) -> None:
        """Emit the op's backward pass if its result has received a gradient. Called for all ops, in reverse."""
        if op.result in sweep.gradients:
            self.backward(sweep, op, sweep.gradients[op.result])

    def backward(self, sweep: Sweep, op: AuxT, dy: Value) -> None:
        """Emit what hands `dy`, the gradient of the result, to the operands, and the descent of the weights."""
        raise NotImplementedError(op.opname)


RULES: dict[type[AuxOp], Rule[Any]] = {}
RuleT = TypeVar("RuleT", bound=Rule[Any])


def lowers(kind: type[AuxOp]) -> Callable[[type[RuleT]], type[RuleT]]:
    """Return a class decorator that registers the rule of an auxiliary op."""

    def add(cls: type[RuleT]) -> type[RuleT]:
        RULES[kind] = cls()
        return cls

    return add


def rule_of(op: AuxOp) -> Rule[Any]:
    """Return the op's rule; raise `NotImplementedError` for ops that canonicalising removes."""
    if type(op) not in RULES:
        raise NotImplementedError(f"{op.opname} has no simulator module; canonicalise first.")
    return RULES[type(op)]


def stem(parameter: str) -> str:
    """Return a layer's name: that of its parameter without the tensor's own suffix."""
    return parameter.removesuffix(".weight").removesuffix(".bias")
