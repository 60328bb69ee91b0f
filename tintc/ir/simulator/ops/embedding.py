"""`sim.embedding`: table look-up by token."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tintc.ir.block_specs import TensorSpec
from tintc.ir.core import register
from tintc.ir.inputs import Inputs
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.interface.storage import Storage


@register("sim.embedding")
@dataclass(eq=False, kw_only=True)
class Embedding(SimOp):
    """() -> row `input_ids` of ``tables.<table> [V, D]``, ``[B, T, D]``.

    Claim: literally the simulator's own embedding puts the row into slot 0 of its token, pads zero: what a token reads
    does not depend on other tokens. Tables never descend, so there is no backward module. QED.
    """

    table: str

    def verify(self) -> None:
        self.expect(not self.operands and self.result.type.kind == "tokens", "takes no operand and gives tokens")

    def stored(self, storage: Storage) -> dict[str, TensorSpec]:
        return storage.tables(self.table)

    def rows(self, inputs: Inputs) -> Tensor:
        """Return the row that every token looks up, ``[B, T]``."""
        return inputs.input_ids

    def interpret(self, run: Interpretation) -> Tensor:
        return run.table(self.table)[self.rows(run.inputs)]

    def literal(self, run: LiteralRun) -> Tiles:
        return [run.look_up(self.table, self.rows(run.inputs))]

    def fused(self, run: FusedRun) -> Tensor:
        return F.embedding(self.rows(run.inputs)[:, run.here(self)], run.table(self.table))
