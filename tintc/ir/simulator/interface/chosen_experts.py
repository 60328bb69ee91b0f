"""Which expert meets which vector: the routing of a run, and vectors sorted by the weights that they meet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """Vectors sorted by the weights that they meet.

    order ``[N]``: their indices, sorted; spans: which weights, and from where to where in that order.
    """

    order: Tensor
    spans: list[tuple[int, int, int]]

    @classmethod
    def of(cls, keys: Tensor) -> Groups:
        """Return the groups of equal keys ``[N]``."""
        order = keys.argsort(stable=True)
        present, counts = keys.unique(return_counts=True)
        spans: list[tuple[int, int, int]] = []
        start = 0
        for key, count in zip(present.tolist(), counts.tolist(), strict=True):
            spans.append((key, start, start + count))
            start += count
        return cls(order, spans)

    @cached_property
    def inverse(self) -> Tensor:
        """Return the place of every vector in the order."""
        inverse = torch.empty_like(self.order)
        inverse[self.order] = torch.arange(self.order.shape[0], device=self.order.device)
        return inverse


@dataclass(frozen=True)
class Routing:
    """The experts of every token of a run, ``[B, n, k]``, and their weights, of the same shape.

    Where fewer than k experts have a weight that is not zero, others stand in with the weight zero.
    """

    experts: Tensor
    weights: Tensor

    @classmethod
    def of(cls, r: Tensor, chosen: int) -> Routing:
        """Return the routing of dense weights ``r [B, n, E]``."""
        experts = r.detach().abs().topk(chosen, -1).indices
        return cls(experts, r.gather(-1, experts))

    @cached_property
    def groups(self) -> Groups:
        """Return the vectors of all examples by expert."""
        return Groups.of(self.experts.flatten())

    @cached_property
    def examples(self) -> Tensor:
        """Return the example of every vector, ``[B n k]``."""
        return examples_of(self.experts)

    def factors(self, weighted: bool) -> Tensor:
        """Return ``[B, n, k, 1]``: the weights, or one for every expert that has any."""
        weights = self.weights
        if not weighted:
            weights = (weights != 0).to(weights.dtype)
        return weights[..., None]


def examples_of(values: Tensor) -> Tensor:
    """Return the index of the example for every entry of ``values [B, ...]``, flat."""
    return torch.arange(values.shape[0], device=values.device).repeat_interleave(values[0].numel())
