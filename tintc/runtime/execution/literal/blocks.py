"""The other blocks: split chains, group norms, activations, products of slots, the vocabulary, routers, gates."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tintc.ir.block_specs import (
    ActivationSpec,
    AttentionSpec,
    BlockSpec,
    ChosenSpec,
    ConvolutionSpec,
    GroupNormSpec,
    InverseRootSpec,
    LinearSpec,
    PointwiseSpec,
    ProductSpec,
    RecurrenceSpec,
    RouterSpec,
    VocabularySpec,
)
from tintc.ir.functions import ACTIVATIONS, norm_scale
from tintc.ir.layout import Layout
from tintc.ir.losses import hidden
from tintc.ir.router import routing_gradient, routing_weights
from tintc.runtime.execution.literal.attention import TintAttention
from tintc.runtime.execution.literal.mixers import Convolution, Pointwise, Recurrence
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
            kept = vector[..., : spec.width].unflatten(-1, (spec.parts, -1))
            pads = vector[..., spec.width :]
            scale = norm_scale(spec.kind, kept, spec.eps)
            inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / torch.where(scale == 0, 1.0, scale))
            centred = kept
            if spec.kind == "layer":
                centred = kept - kept.mean(-1, keepdim=True)
            normed = torch.cat(((centred * inverse).flatten(-2), pads), -1).split(self.pitch, -1)
            for slot, part in zip(group, normed, strict=True):
                parts[slot] = part
            if spec.inverse >= 0:
                parts[spec.inverse] = self._spread(inverse)
        return torch.cat(parts, -1)

    def _spread(self, inverse: Tensor) -> Tensor:
        """Return 1/sigma ``[B, T, parts, 1]`` as a slot ``[B, T, pitch]``."""
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


class InverseRoot(nn.Module):
    """Slot 0 becomes its x^(-1/2), and 0 where x is not above 0."""

    def __init__(self, layout: Layout):
        super().__init__()
        self.pitch = layout.pitch

    def forward(self, e: Tensor) -> Tensor:
        x = e[..., : self.pitch]
        above = x > 0
        root = torch.where(above, torch.where(above, x, 1.0).rsqrt(), 0.0)
        return torch.cat((root, e[..., self.pitch :]), -1)


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
        """Return an embedding ``[B, T_sim, D_sim]`` with the result at slot 0 of the tokens, for one of this shape."""
        x = e[:, self.layout.n_prefixes :, : self.spec.width]
        head = self.references["head"].tensor().to(e.dtype)
        bias = None
        if "bias" in self.references:
            bias = self.references["bias"].tensor().to(e.dtype)
        y = hidden(self.spec.loss, F.linear(x, head, bias), self.spec.logit_map) @ head
        return F.pad(y, (0, self.layout.d_sim - self.spec.width, self.layout.n_prefixes, 0))


class Router(nn.Module):
    """A router: the logits in the first slots become the weights of the experts, zero for those not chosen.

    Vectors over the experts, such as a bias of the choice, are tables of the model and only referred to.
    """

    def __init__(self, spec: RouterSpec, layout: Layout):
        super().__init__()
        self.spec, self.pitch = spec, layout.pitch
        self.references: dict[str, Reference] = {}

    def forward(self, e: Tensor) -> Tensor:
        experts = self.spec.experts
        end = -(-experts // self.pitch) * self.pitch
        vectors = {key: reference.tensor() for key, reference in self.references.items()}
        first = e[..., :experts]
        if self.spec.backward:
            weights = routing_gradient(self.spec.options, e[..., end : end + experts], first, vectors)
        else:
            weights = routing_weights(self.spec.options, first, vectors)
        return torch.cat((F.pad(weights, (0, end - experts)), e[..., end:]), -1)


class Chosen(nn.Module):
    """Slot 0 becomes one wherever it is not zero."""

    def __init__(self, layout: Layout):
        super().__init__()
        self.pitch = layout.pitch

    def forward(self, e: Tensor) -> Tensor:
        first = (e[..., : self.pitch] != 0).to(e.dtype)
        return torch.cat((first, e[..., self.pitch :]), -1)


class PositionGate(nn.Module):
    """A gate (construction.md, section 2.3): ``out = tanh(v_old . p) * old + tanh(v_new . p) * new``;
    ``v_old, v_new [T_sim]``."""

    def __init__(self, sim_seq_len: int):
        super().__init__()
        self.v_old = nn.Parameter(torch.empty(sim_seq_len))
        self.v_new = nn.Parameter(torch.empty(sim_seq_len))

    def forward(self, old: Tensor, new: Tensor, positions: Tensor) -> Tensor:
        """Return the gated sum of old and new ``[B, T_sim, D_sim]``; positions ``[B, T_sim]`` are indices."""
        return torch.tanh(self.v_old.to(new.dtype))[positions][..., None] * old + self.taken(new, positions)

    def taken(self, new: Tensor, positions: Tensor) -> Tensor:
        """Return the part of the new embedding that passes."""
        return torch.tanh(self.v_new.to(new.dtype))[positions][..., None] * new


def build_block(spec: BlockSpec, layout: Layout) -> nn.Module:
    """Return the module of a block description, its tensors not yet filled."""
    match spec:
        case AttentionSpec():
            return TintAttention(spec, layout.sim_seq_len)
        case LinearSpec():
            return build_split(spec.stages)
        case GroupNormSpec():
            return GroupNorm(spec, layout)
        case ActivationSpec():
            return Activation(spec, layout)
        case InverseRootSpec():
            return InverseRoot(layout)
        case ProductSpec():
            return Product(spec, layout)
        case VocabularySpec():
            return VocabularyMLP(spec, layout)
        case RouterSpec():
            return Router(spec, layout)
        case ChosenSpec():
            return Chosen(layout)
        case RecurrenceSpec():
            return Recurrence(spec, layout)
        case ConvolutionSpec():
            return Convolution(spec, layout)
        case PointwiseSpec():
            return Pointwise(spec, layout)
