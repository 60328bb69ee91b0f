"""What the two descent modules share: the weights they step, and the stored rate they step them with."""

from __future__ import annotations

from dataclasses import dataclass

from tintc.ir.core import Value
from tintc.ir.simulator.base import SimOp, Storage
from tintc.ir.structure import TensorSpec


@dataclass(eq=False, kw_only=True)
class DescentOp(SimOp):
    """(W, dy, ...) -> W'. target: name of the weights, whose stored rate is used, times `rate_scale`."""

    target: str
    rate_scale: float = 1.0

    def stored(self, storage: Storage) -> dict[str, TensorSpec]:
        return {f"rates.{self.target}": storage.rates()}

    def of_its_step(self) -> bool:
        return True

    def rates(self) -> tuple[str, ...]:
        return (self.target,)

    def untrained(self) -> Value:
        return self.operands[0]
