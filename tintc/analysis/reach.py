"""Which heads a number of a split operation belongs to: those that it reaches, or that what it reads comes from."""

from __future__ import annotations

import torch
from torch import Tensor

from tintc.analysis.dependence import links
from tintc.analysis.owner import StageTensor
from tintc.ir.block_specs import AttentionSpec
from tintc.ir.structure import chains


class Reach:
    """The heads that the numbers between split operations belong to, worked out once for every chain of a block.

    attentions: the blocks that have heads, by name.
    """

    def __init__(self) -> None:
        self.attentions: dict[str, AttentionSpec] = {}
        self._reached: dict[tuple[str, str], list[Tensor]] = {}

    def of(self, held: StageTensor) -> Tensor:
        """Return ``[numbers, heads]``: which heads the numbers that decide about an entry belong to.

        Of what leads to heads, those that the result of the operation reaches; of ``w_o``, those that what it reads
        comes from (for a bias, what it gives).
        """
        key = (held.block, held.chain)
        if key not in self._reached:
            self._reached[key] = self._chain(self.attentions[held.block], held.chain)
        return self._reached[key][held.number + (held.chain != "w_o." or held.bias)]

    def _chain(self, spec: AttentionSpec, chain: str) -> list[Tensor]:
        """Return ``[numbers, heads]`` before the first operation of a chain, between any two, and after the last."""
        stages = chains(spec)[chain]
        own = torch.eye(spec.n_heads, dtype=torch.bool).repeat_interleave(spec.width, 0)
        reached = [own]
        for stage in stages if chain == "w_o." else reversed(stages):
            into, out = links(stage)
            count = stage.n_results * stage.width
            if chain != "w_o.":
                into, out = out, into
                count = stage.n_heads * stage.width
            more = torch.zeros(count, spec.n_heads, dtype=torch.int64)
            reached.append(more.index_add_(0, out, reached[-1][into].long()) > 0)
        if chain == "w_o.":
            return reached
        return reached[::-1]

    def heads_of(self, held: StageTensor, at: Tensor) -> Tensor:
        """Return ``[n, heads]``: whether the numbers at ``[n, dimensions]`` belong to each head."""
        reached = self.of(held)
        if held.bias:
            return reached[held.stage.biased(*at.unbind(1))]
        source, given = held.stage.ends(*at.unbind(1))
        return reached[source if held.chain == "w_o." else given]
