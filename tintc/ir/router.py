"""Routing: which experts of a mixture a token takes, and with which weights; one place for its options and definition.

Both dialects have these options (`aux.route`, `sim.route`). Their files, the router block and fused execution all call
`routing_weights`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from tintc.ir.core import Op

SCORES = ("softmax", "sigmoid", "sqrt_softplus", "identity", "sparse_mixer")
WEIGHINGS = ("", "sigmoid")
NORMALISATIONS = ("", "sum", "softmax")
GROUP_SCORES = ("max", "top2")
ROUTER_VECTORS = ("bias", "gains")
"""Options that name vectors over the experts."""


@dataclass(eq=False, kw_only=True)
class RouterOptions(Op):
    """How the logits ``z [.., E]`` of a router become weights of its experts.

    chosen: how many experts a token takes (k); scores: s of z, one of `SCORES`; bias: name of a vector ``[E]`` that is
    added to s where experts are chosen, and does not weigh (empty: none). groups: equal parts of the experts of which
    only the `kept_groups` with the largest `group_score` (``max``, or ``top2``: the sum of the two largest) take part.
    weigh: ``sigmoid`` puts the sigmoid of the chosen scores in their place; empty: they stay. normalise: ``sum``
    divides the chosen scores by their sum, plus `eps`, at least `floor`; ``softmax`` takes the softmax of the chosen
    scores; empty: neither. gains: name of a vector ``[E]`` that multiplies the weights; factor: a number that does.
    jitter: of ``sparse_mixer`` (arXiv 2409.12136), which takes its experts one after the other, each weighed by a
    softmax over the logits that are within ``2 jitter`` of the largest left, relatively.
    """

    chosen: int
    scores: str = "softmax"
    bias: str = ""
    groups: int = 1
    kept_groups: int = 1
    group_score: str = "max"
    weigh: str = ""
    normalise: str = ""
    eps: float = 0.0
    floor: float = 0.0
    gains: str = ""
    factor: float = 1.0
    jitter: float = 0.0

    def verify(self) -> None:
        (z,) = self.operands
        self.expect(z.type.kind == "tokens" and z.type == self.result.type, "takes logits and gives weights of experts")
        experts = z.type.width
        even = self.groups > 0 and experts % self.groups == 0
        self.expect(even, f"{self.groups} groups do not divide {experts} experts")
        self.expect(0 < self.kept_groups <= self.groups, f"keeps {self.kept_groups} of {self.groups} groups")
        open_experts = experts // self.groups * self.kept_groups
        self.expect(0 < self.chosen <= open_experts, f"chooses {self.chosen} of {open_experts} experts")
        self.expect(self.scores in SCORES, f"unknown scores {self.scores!r}")
        self.expect(self.weigh in WEIGHINGS, f"unknown weighing {self.weigh!r}")
        self.expect(self.normalise in NORMALISATIONS, f"unknown normalisation {self.normalise!r}")
        self.expect(self.group_score in GROUP_SCORES, f"unknown score of groups {self.group_score!r}")
        pairs = self.group_score != "top2" or self.groups == 1 or experts // self.groups > 1
        self.expect(pairs, "a group of one expert has no two largest scores")

    def options(self) -> dict[str, Any]:
        """Return all options, by name."""
        inherited = {f.name for f in fields(Op)}
        return {f.name: getattr(self, f.name) for f in fields(RouterOptions) if f.name not in inherited}

    def vectors(self) -> dict[str, str]:
        """Return the names of the vectors over the experts, by option."""
        names = {key: getattr(self, key) for key in ROUTER_VECTORS}
        return {key: name for key, name in names.items() if name}


def routing_weights(options: RouterOptions, z: Tensor, vectors: Mapping[str, Tensor]) -> Tensor:
    """Return dense weights ``[.., E]`` of logits ``z [.., E]``: zero for the experts that are not chosen.

    vectors: those of `RouterOptions.vectors`, by option. Of equal scores the one of the lower index is chosen.
    """
    if options.scores == "sparse_mixer":
        weights = _sparse_mixer(z, options.chosen, options.jitter)
    else:
        weights = _scored(options, z, vectors)
    if "gains" in vectors:
        weights = weights * vectors["gains"].to(z.dtype)
    return weights * options.factor


def _scored(options: RouterOptions, z: Tensor, vectors: Mapping[str, Tensor]) -> Tensor:
    """Return the weights of all rules that choose the largest scores."""
    scores = _scores(options.scores, z)
    preference = scores
    if "bias" in vectors:
        preference = scores + vectors["bias"].to(z.dtype)
    if options.groups > 1:
        preference = _within_kept_groups(options, preference)
    index = _largest(preference, options.chosen)
    weights = scores.gather(-1, index)
    if options.weigh == "sigmoid":
        weights = weights.sigmoid()
    if options.normalise == "sum":
        weights = weights / (weights.sum(-1, keepdim=True) + options.eps).clamp(min=options.floor)
    if options.normalise == "softmax":
        weights = weights.softmax(-1)
    return torch.zeros_like(z).scatter(-1, index, weights)


def _scores(name: str, z: Tensor) -> Tensor:
    if name == "softmax":
        return z.softmax(-1)
    if name == "sigmoid":
        return z.sigmoid()
    if name == "sqrt_softplus":
        return torch.nn.functional.softplus(z).sqrt()
    return z


def _within_kept_groups(options: RouterOptions, preference: Tensor) -> Tensor:
    """Return the preferences ``[.., E]``, minus infinity in the groups that are left out."""
    groups = preference.unflatten(-1, (options.groups, -1))
    best = groups.amax(-1)
    if options.group_score == "top2":
        best = groups.topk(2, -1).values.sum(-1)
    kept = torch.zeros_like(best, dtype=torch.bool).scatter(-1, _largest(best, options.kept_groups), True)
    return groups.masked_fill(~kept[..., None], -torch.inf).flatten(-2)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Return the indices ``[.., count]`` of the largest scores; of equal ones the lower index comes first."""
    return scores.detach().sort(dim=-1, descending=True, stable=True).indices[..., :count]


def _sparse_mixer(z: Tensor, count: int, jitter: float) -> Tensor:
    weights = torch.zeros_like(z)
    left = z
    for _ in range(count):
        top, index = left.max(-1, keepdim=True)
        far = (top - z) / z.abs().clamp(min=top) > 2 * jitter
        weight = left.masked_fill(far, -torch.inf).softmax(-1).gather(-1, index)
        weights = weights.scatter(-1, index, weight)
        left = left.scatter(-1, index, -torch.inf)
    return weights
