"""The paper's parameter totals for OPT, and the counts of its table for the same shapes (construction.md, section
11)."""

from __future__ import annotations

from dataclasses import dataclass

from tintc.analysis.parameter_counts import transformer_block
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.storage import TableCount

CONTEXT = 2048
"""Text length of the paper's simulators."""


@dataclass(frozen=True)
class Published:
    """A row of the paper.

    d_aux, n_layers: the model's; n_heads: H_sim; totals: forward, backward, descent and their sum, in 1e9 parameters.
    """

    name: str
    d_aux: int
    n_layers: int
    n_heads: int
    totals: tuple[float, float, float, float]

    @property
    def layout(self) -> Layout:
        """Return the layout: D_sim = 4 D, and S' = S rows of K = d_h shards.

        With 16 heads it is a budget: no room is left for a bias.
        """
        d_h = 4 * self.d_aux // self.n_heads
        parts = self.d_aux // d_h
        return Layout(self.d_aux, parts, parts, d_h, self.n_heads, CONTEXT)

    @property
    def table(self) -> TableCount:
        """Return the counts of construction.md, section 11, times the layers."""
        block = transformer_block(self.layout)
        return TableCount(*(self.n_layers * part for part in (block.forward, block.backward, block.descent)))


PUBLISHED = (
    Published("OPT-125m", 768, 12, 12, (0.4, 0.4, 0.4, 1.2)),
    Published("OPT-350m", 1024, 24, 16, (1.2, 1.1, 1.1, 3.4)),
    Published("OPT-1.3b", 2048, 24, 16, (3.7, 3.6, 3.5, 10.8)),
    Published("OPT-2.7b", 2560, 32, 16, (7.4, 7.2, 7.2, 21.8)),
)
