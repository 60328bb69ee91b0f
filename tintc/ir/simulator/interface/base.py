"""The base of simulator ops: the sum of what an op's template file is asked for.

An op's template file is the only place that knows any of these: its semantics (`semantics`), its literal form
(`literal_base`), its fused form (`fused_base`), what that costs (`cost_model`), and its stored tensors (`storage`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.cost_model import FusedCost
from tintc.ir.simulator.interface.fused_base import FusedForm
from tintc.ir.simulator.interface.literal_base import LiteralForm
from tintc.ir.simulator.interface.semantics import Interpretation, Semantics
from tintc.ir.simulator.interface.storage import StoredTensors
from tintc.ir.softmax_heads import is_linear, softmax_block
from tintc.ir.structure import StructuralBlock


@dataclass(eq=False, kw_only=True)
class SimOp(Semantics, LiteralForm, FusedForm, FusedCost, StoredTensors):
    """An op of the simulator dialect.

    origin: the auxiliary value or layer it simulates; phase: forward, loss, backward or descent; step: which pass or
    gradient step; layer: the auxiliary's layer, -1 outside; role: as in the auxiliary dialect. `write` is added by the
    slot allocator: the memory slots of each token result, one per tile. `softmax` is added by calibration where linear
    attention is realised by softmax heads: their constants, see `tintc.ir.softmax_heads.softmax_block`.
    """

    origin: str = ""
    phase: str = "forward"
    step: int = 0
    layer: int = -1
    role: str = ""
    write: tuple[tuple[int, ...], ...] = ()
    softmax: tuple[float, ...] = ()

    def with_tiles(self, layout: Layout) -> SimOp:
        """Return the op with what planning the layout adds to it: the tiles of the weights it holds or reads."""
        return self

    def realised(self, layout: Layout) -> dict[str, tuple[str, StructuralBlock]]:
        """Return the same blocks as they are built, each with its name under ``structure``.

        They differ where `softmax` is set: linear attention is then by softmax heads.
        """
        blocks = self.structure(layout)
        if not self.softmax:
            return {name: (name, block) for name, block in blocks.items()}
        positive = len(self.softmax) == 3 and all(value > 0 for value in self.softmax)
        self.expect(positive, "the constants of softmax heads are three positive numbers")
        built = {name: (name, block) for name, block in blocks.items() if not is_linear(block)}
        linear = {name: block for name, block in blocks.items() if is_linear(block)}
        softmax = {name: softmax_block(name, block, layout, self.softmax) for name, block in linear.items()}
        return {name: (built | softmax)[name] for name in blocks}

    def blocks(self, layout: Layout) -> dict[str, StructuralBlock]:
        """Return the blocks that are built, by their name under ``structure``."""
        return dict(self.realised(layout).values())

    def scores(self, layout: Layout, run: Interpretation, *operands: Any) -> Iterable[Tensor]:
        """Return the scores of the literal form's linear heads, in tensors of any shape, from interpreter values of the
        operands.

        Constant scores and copies are left out.
        """
        return ()
