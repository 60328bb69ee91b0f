"""Shared by the ops of two like operands."""

from __future__ import annotations

from dataclasses import dataclass

from tintc.ir.auxiliary.base import AuxOp


@dataclass(eq=False, kw_only=True)
class Binary(AuxOp):
    """Two operands of one type, which the result has too."""

    def verify(self) -> None:
        self.expect(len(self.operands) == 2, f"takes two operands, not {len(self.operands)}")
        a, b = self.operands
        self.expect(a.type == b.type == self.result.type, f"types differ: {a.type}, {b.type} -> {self.result.type}")
