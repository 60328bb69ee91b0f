"""H-split linear operations (Defs. D.4, D.5) as modules on embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tintc.ir.block_specs import Split, SplitStage


class SplitOperation(nn.Module):
    """One split operation with H chunks of width w: ``[..., D_sim] -> [..., D_sim]``.

    kind ``dimension``: ``weight [w, H, H]``, column c becomes ``W_c E_:c + B_c``; ``split``: ``weight [H, w, w]``,
    chunk h becomes ``W_h E_h + B_h``. ``bias [H, w]`` or None. With another number G of results: ``[w, G, H]``,
    ``[G, w]``.
    """

    def __init__(self, stage: SplitStage):
        super().__init__()
        self.kind = stage.kind
        self.n_heads = stage.n_heads
        self.width = stage.width
        self.weight = nn.Parameter(torch.empty(stage.weight.shape))
        self.bias = None
        if stage.bias:
            self.bias = nn.Parameter(torch.empty(stage.n_results, stage.width))

    def forward(self, e: Tensor) -> Tensor:
        chunks = e.unflatten(-1, (self.n_heads, self.width))
        weight = self.weight.to(e.dtype)
        rule = {"dimension": "...hc,cgh->...gc", "split": "...hc,hdc->...hd"}[self.kind]
        out = torch.einsum(rule, chunks, weight)
        if self.bias is not None:
            out = out + self.bias.to(e.dtype)
        return out.flatten(-2)

    def extra_repr(self) -> str:
        return f"{self.kind}, n_heads={self.n_heads}, width={self.width}"


class Zero(nn.Module):
    """The zero operation, with results of `size`: no parameters."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, e: Tensor) -> Tensor:
        return e.new_zeros(*e.shape[:-1], self.size)


def build_split(split: Split, size: int = 0) -> nn.Module:
    """Return a chain of split operations; none at all is the identity, None is zero, of that size."""
    if split is None:
        return Zero(size)
    if not split:
        return nn.Identity()
    return nn.Sequential(*(SplitOperation(stage) for stage in split))
