"""The other blocks: split chains, group norms, activations, products of slots, the vocabulary, gates, prefixes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tintc.ir.core import Type
from tintc.ir.functions import ACTIVATIONS, norm_scale
from tintc.ir.layout import Layout
from tintc.ir.losses import hidden
from tintc.ir.simulator.shared.linear_common import copies_of_bias
from tintc.ir.structure import (
    ActivationSpec,
    AttentionSpec,
    BlockSpec,
    GroupNormSpec,
    LinearSpec,
    ProductSpec,
    VocabularySpec,
)
from tintc.runtime.execution.literal.attention import TintAttention
from tintc.runtime.execution.literal.split import build_split
from tintc.runtime.execution.module_tree import Reference


class GroupNorm(nn.Module):
    """Group norm and group RMS norm on slots (Defs. F.6, J.2), without parameters.

    Each group of slots is one vector of `width` coordinates (pads are zero and stay zero); it is divided by its sigma
    or rms. A zero vector with eps = 0 stays zero. `inverse`: a slot that receives 1/sigma in its first coordinates. A
    norm holds it anyway: its eps is a constant coordinate ``sqrt(D eps)`` that is normalised with the others, and
    comes out as ``sqrt(D eps) / sigma``.
    """

    def __init__(self, spec: GroupNormSpec, layout: Layout):
        super().__init__()
        self.spec, self.pitch = spec, layout.pitch

    def forward(self, e: Tensor) -> Tensor:
        parts = list(e.split(self.pitch, -1))
        spec = self.spec
        for group in spec.groups:
            vector = torch.cat([parts[slot] for slot in group], -1)
            kept, pads = vector[..., : spec.width].unflatten(-1, (spec.parts, -1)), vector[..., spec.width :]
            scale = norm_scale(spec.kind, kept, spec.eps)
            inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / torch.where(scale == 0, 1.0, scale))
            centred = kept - kept.mean(-1, keepdim=True) if spec.kind == "layer" else kept
            normed = torch.cat(((centred * inverse).flatten(-2), pads), -1).split(self.pitch, -1)
            for slot, part in zip(group, normed, strict=True):
                parts[slot] = part
            if spec.inverse >= 0:
                parts[spec.inverse] = self._spread(inverse)
        return torch.cat(parts, -1)

    def _spread(self, inverse: Tensor) -> Tensor:
        """1/sigma ``[B, T, parts, 1]`` as a slot ``[B, T, pitch]``."""
        if self.spec.parts == 1:
            return inverse[..., 0].expand(*inverse.shape[:2], self.pitch)
        held = inverse.expand(-1, -1, -1, self.spec.width // self.spec.parts).flatten(-2)
        return F.pad(held, (0, self.pitch - held.shape[-1]))


class Activation(nn.Module):
    """An activation on some slots; the others pass."""

    def __init__(self, spec: ActivationSpec, layout: Layout):
        super().__init__()
        self.spec, self.pitch = spec, layout.pitch

    def forward(self, e: Tensor) -> Tensor:
        parts = list(e.split(self.pitch, -1))
        for slot in self.spec.slots:
            parts[slot] = ACTIVATIONS[self.spec.fn](parts[slot])
        return torch.cat(parts, -1)


class Product(nn.Module):
    """Slot `target` times slot `factor`: the gated linear unit with the identity as activation (J.3)."""

    def __init__(self, spec: ProductSpec, layout: Layout):
        super().__init__()
        self.spec, self.pitch = spec, layout.pitch

    def forward(self, e: Tensor) -> Tensor:
        parts = list(e.split(self.pitch, -1))
        parts[self.spec.target] = parts[self.spec.target] * parts[self.spec.factor]
        return torch.cat(parts, -1)


class VocabularyMLP(nn.Module):
    """Appendix H: slot 0 of the tokens, x, becomes ``E^T h(E x + b)``, a softmax MLP with the vocabulary as its hidden
    layer.

    The head ``E [V, D]`` belongs to the model's tables and is only referred to: the one table is both matrices.
    """

    def __init__(self, spec: VocabularySpec, layout: Layout):
        super().__init__()
        self.spec, self.layout = spec, layout
        self.references: dict[str, Reference] = {}

    def forward(self, e: Tensor) -> Tensor:
        """``e [B, T_sim, D_sim]``."""
        x = e[:, self.layout.n_prefixes :, : self.spec.width]
        head = self.references["head"].tensor().to(e.dtype)
        bias = self.references["bias"].tensor().to(e.dtype) if "bias" in self.references else None
        y = hidden(self.spec.loss, F.linear(x, head, bias), self.spec.logit_map) @ head
        return F.pad(y, (0, self.layout.d_sim - self.spec.width, self.layout.n_prefixes, 0))


class PositionGate(nn.Module):
    """A gate (construction.md, section 2.3): ``out = tanh(v_old . p) * old + tanh(v_new . p) * new``;
    ``v_old, v_new [T_sim]``."""

    def __init__(self, sim_seq_len: int):
        super().__init__()
        self.v_old = nn.Parameter(torch.empty(sim_seq_len))
        self.v_new = nn.Parameter(torch.empty(sim_seq_len))

    def forward(self, old: Tensor, new: Tensor, positions: Tensor) -> Tensor:
        """old, new ``[B, T_sim, D_sim]``, positions ``[B, T_sim]`` indices."""
        return torch.tanh(self.v_old.to(new.dtype))[positions][..., None] * old + self.taken(new, positions)

    def taken(self, new: Tensor, positions: Tensor) -> Tensor:
        """What of the new embedding passes."""
        return torch.tanh(self.v_new.to(new.dtype))[positions][..., None] * new


class Prefix(nn.Module):
    """The auxiliary's weights as prefix embeddings.

    Holds ``weight [ceil(dout/S), S, din]`` and ``bias [dout]`` of a linear layer, or ``gain [D]`` and ``bias [D]`` of a
    norm, which stands for the linear layer diag(gain), or is kept as a vector if it descends. `forward` puts one tile
    into the prefix positions: row s of prefix k at chunk ``s*S'``, or a gain's vector at chunk 0 of prefix 0; the bias
    at chunk ``S*S'`` of prefix 0.
    """

    weight: Tensor
    gain: Tensor
    bias: Tensor

    def __init__(self, kind: Type, shapes: dict[str, tuple[int, ...]], tiles: tuple[int, int], layout: Layout):
        super().__init__()
        self.holds, self.tiles, self.layout, self.parts = kind, tiles, layout, tuple(shapes)
        for part, shape in shapes.items():
            setattr(self, part, nn.Parameter(torch.empty(shape)))
        self.bias_copies = copies_of_bias(kind)

    def forward(self, e: Tensor, row: int, column: int) -> Tensor:
        """``e [B, K + T, D_sim]`` with tile (row, column) in its prefix positions."""
        tile = self._tile(row, column).to(e.dtype)
        return torch.cat((tile.expand(e.shape[0], -1, -1), e[:, self.layout.n_prefixes :]), 1)

    def _rows(self) -> Tensor:
        """``[K', S, din]``: the stored rows, or the diagonal of a gain."""
        if self.holds.kind == "linear":
            return self.weight
        (width,) = self.holds.dims
        if "vector" in self.holds.parts:
            return F.pad(self.gain[None, None], (0, 0, 0, self.layout.stack - 1))
        gain = self.gain if "gain" in self.holds.parts else torch.ones_like(self.bias)
        padded = F.pad(torch.diag(gain), (0, 0, 0, -width % self.layout.stack))
        return padded.unflatten(0, (-1, self.layout.stack))

    def _tile(self, r: int, c: int) -> Tensor:
        layout, k, pitch = self.layout, self.layout.n_prefixes, self.layout.pitch
        tile = self._rows()[r * k : (r + 1) * k, :, c * pitch : (c + 1) * pitch]
        tile = F.pad(tile, (0, pitch - tile.shape[2], 0, 0, 0, k - tile.shape[0]))
        main = tile.flatten(1)
        bias = main.new_zeros(k, layout.d_sim - layout.main_heads * layout.d_h)
        if c < self.bias_copies:
            part = self.bias[r * pitch : (r + 1) * pitch] / self.bias_copies
            bias = F.pad(part, (0, bias.shape[1] - part.shape[0]))[None]
            bias = F.pad(bias, (0, 0, 0, k - 1))
        return torch.cat((main, bias), 1)


def build_block(spec: BlockSpec, layout: Layout) -> nn.Module:
    """The module of a block description, its tensors not yet filled."""
    match spec:
        case AttentionSpec():
            return TintAttention(spec, layout.sim_seq_len)
        case LinearSpec():
            return build_split(spec.stages)
        case GroupNormSpec():
            return GroupNorm(spec, layout)
        case ActivationSpec():
            return Activation(spec, layout)
        case ProductSpec():
            return Product(spec, layout)
        case VocabularySpec():
            return VocabularyMLP(spec, layout)
