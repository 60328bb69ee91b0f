"""Appending ops to a simulator program, with fresh names and with where each op comes from."""

from __future__ import annotations

from typing import Any, TypeVar

from tintc.ir.core import Op, Type, Value
from tintc.ir.names import Names
from tintc.ir.simulator import SimOp

SimT = TypeVar("SimT", bound=SimOp)


class Builder:
    """Appends to `ops`; `phase`, `step` and `suffix` mark everything built until they change."""

    def __init__(self, names: Names, phase: str, suffix: str):
        self.names, self.phase, self.suffix = names, phase, suffix
        self.ops: list[Op] = []

    def emit(self, cls: type[SimT], operands: tuple[Value, ...], kinds: tuple[Type, ...], **attributes: Any) -> SimT:
        """Append an op; its results are named after `origin` and the suffix."""
        origin = attributes.get("origin", cls.opname)
        results = tuple(Value(self.names.fresh(f"{origin}.{self.suffix}"), kind) for kind in kinds)
        op = cls(operands=operands, results=results, **(dict[str, Any](phase=self.phase) | attributes))
        self.ops.append(op)
        return op
