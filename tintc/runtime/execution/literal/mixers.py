"""Blocks that mix tokens otherwise than attention, and the functions of what they are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tintc.ir.block_specs import ConvolutionSpec, PointwiseSpec, RecurrenceSpec
from tintc.ir.convolution import apply_convolution, apply_transposed_convolution
from tintc.ir.functions import merge_heads, split_heads
from tintc.ir.layout import Layout
from tintc.ir.pointwise import apply_pointwise
from tintc.ir.recurrence import recurrence_matrix
from tintc.ir.recurrence.heads import Heads
from tintc.runtime.execution.module_tree import Reference


class ReferringBlock(nn.Module):
    """A block that reads tables of the model, which are only referred to."""

    def __init__(self, layout: Layout):
        super().__init__()
        self.layout = layout
        self.references: dict[str, Reference] = {}

    def table(self, name: str) -> Tensor | None:
        """Return a table by what it is to the block; None if it has none such."""
        if name not in self.references:
            return None
        return self.references[name].tensor()

    def tokens(self, e: Tensor, start: int, width: int) -> Tensor:
        """Return `width` numbers from slot `start` on of the tokens of an embedding ``[B, T_sim, D_sim]``."""
        first = start * self.layout.pitch
        return e[:, self.layout.n_prefixes :, first : first + width]

    def put(self, e: Tensor, y: Tensor) -> Tensor:
        """Return an embedding of the same shape with ``y [B, T, width]`` in the first slots of its tokens."""
        return F.pad(y, (0, e.shape[-1] - y.shape[-1], self.layout.n_prefixes, 0))


class Recurrence(ReferringBlock):
    """Scores of queries and keys become the matrix of a recurrence, by its definition, and weigh the values."""

    def __init__(self, spec: RecurrenceSpec, layout: Layout):
        super().__init__(layout)
        self.spec = spec

    def forward(self, e: Tensor) -> Tensor:
        options = self.spec.options
        place = 2
        if self.spec.transposed:
            place = 0
        widths, _ = options.mixed_widths(place, self.spec.transposed)
        parts = [self.tokens(e, start, width) for start, width in zip(self.spec.starts[:-1], widths, strict=True)]
        met = parts.pop(place)
        queries, keys, decays, strengths = parts
        real = torch.ones(met.shape[:2], dtype=torch.bool, device=e.device)
        heads = Heads.of(options, queries, keys, decays, strengths, real)
        matrix = recurrence_matrix(options, heads, self.table("skip"))
        if self.spec.transposed:
            return self.put(e, options.merge_values(matrix.transpose(-1, -2) @ split_heads(met, options.n_heads)))
        return self.put(e, merge_heads(matrix @ options.split_values(met)))


class Convolution(ReferringBlock):
    """Shifted copies of slot 0, each times the weights of its lag, and their sum.

    Where padding reads as something, slot 1 has a one at padding, and that is added there first.
    """

    def __init__(self, spec: ConvolutionSpec, layout: Layout):
        super().__init__(layout)
        self.spec = spec

    def forward(self, e: Tensor) -> Tensor:
        spec = self.spec
        first = spec.tile * self.layout.pitch
        rows = slice(first, first + spec.width)
        weight = self.references["weight"].tensor()[rows]
        x = self.tokens(e, 0, spec.width)
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=e.device)
        if spec.transposed:
            return self.put(e, apply_transposed_convolution(x, weight, real))
        padding = self.table("padding")
        if padding is not None:
            x = x + self.tokens(e, 1, 1) * padding[rows].to(x.dtype)
        bias = self.table("bias")
        if bias is not None:
            bias = bias[rows]
        return self.put(e, apply_convolution(x, weight, bias, real))


class Pointwise(ReferringBlock):
    """A function of the numbers that slot 0 holds; its pads stay zero."""

    def __init__(self, spec: PointwiseSpec, layout: Layout):
        super().__init__(layout)
        self.spec = spec

    def forward(self, e: Tensor) -> Tensor:
        spec = self.spec
        vectors = {key: reference.tensor()[spec.start : spec.end] for key, reference in self.references.items()}
        return self.put(e, apply_pointwise(spec.options, self.tokens(e, 0, spec.end - spec.start), vectors))
