"""`sim.repeat`: the descent step as a block, before it is unrolled."""

from __future__ import annotations

from dataclasses import dataclass

from tintc.ir.core import Block, register
from tintc.ir.simulator.interface.base import SimOp


@register("sim.repeat")
@dataclass(eq=False, kw_only=True)
class Repeat(SimOp):
    """(weights...) -> (updated weights...): `body`, run `count` times; each round is handed the last one's yields."""

    count: int
    body: Block

    def verify(self) -> None:
        self.expect(self.count >= 1, f"count is {self.count}, it must be at least 1")
        types = [
            tuple(v.type for v in vs) for vs in (self.operands, self.body.arguments, self.body.yields, self.results)
        ]
        self.expect(all(kinds == types[0] for kinds in types), "operands, arguments, yields and results have one type")
