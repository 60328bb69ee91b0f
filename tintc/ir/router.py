"""Routing: which experts of a mixture a token takes, and with which weights; one place for its options and definition.

Both dialects have these options (`aux.route`, `sim.route`). Their files, the router block and fused execution all call
`routing_weights`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from tintc.ir.core import Op, Type

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
        self.check_options(z.type, self.result.type)

    def check_options(self, logits: Type, result: Type) -> None:
        """Raise `IRError` unless the options suit these logits, of which the result has the type."""
        self.expect(logits.kind == "tokens" and logits == result, "takes logits and gives weights of experts")
        experts = logits.width
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
    index = _choice(options, scores, vectors)
    weights = scores.gather(-1, index)
    if options.weigh == "sigmoid":
        weights = weights.sigmoid()
    if options.normalise == "sum":
        weights = weights / (weights.sum(-1, keepdim=True) + options.eps).clamp(min=options.floor)
    if options.normalise == "softmax":
        weights = weights.softmax(-1)
    return torch.zeros_like(z).scatter(-1, index, weights)


def _choice(options: RouterOptions, scores: Tensor, vectors: Mapping[str, Tensor]) -> Tensor:
    """Return the indices ``[.., chosen]`` of the experts that tokens with these scores choose."""
    preference = scores
    if "bias" in vectors:
        preference = scores + vectors["bias"].to(scores.dtype)
    if options.groups > 1:
        preference = _within_kept_groups(options, preference)
    return _largest(preference, options.chosen)


def routing_gradient(options: RouterOptions, z: Tensor, dr: Tensor, vectors: Mapping[str, Tensor]) -> Tensor:
    """Return the gradient ``[.., E]`` of the logits, from that of the weights, the choice of experts held constant.

    It is the product of dr with the transposed Jacobian of `routing_weights`: for weights ``w / H``, where H is the sum
    of w and `eps`, ``(g - sum(g w) / H) / H`` (``g / H`` where H is held at `floor`); for a softmax p,
    ``p (g - sum(p g))``; for a sigmoid s, ``s (1 - s) g``.
    """
    g = dr * options.factor
    if "gains" in vectors:
        g = g * vectors["gains"].to(z.dtype)
    if options.scores == "sparse_mixer":
        return _sparse_mixer_gradient(z, g, options.chosen, options.jitter)
    scores = _scores(options.scores, z)
    index = _choice(options, scores, vectors)
    g = g.gather(-1, index)
    own = scores.gather(-1, index)
    weights = own.sigmoid() if options.weigh == "sigmoid" else own
    if options.normalise == "sum":
        total = weights.sum(-1, keepdim=True) + options.eps
        held = total.clamp(min=options.floor)
        share = (g * weights).sum(-1, keepdim=True) / held
        g = (g - torch.where(total < options.floor, 0.0, share)) / held
    if options.normalise == "softmax":
        g = _softmax_gradient(weights.softmax(-1), g)
    if options.weigh == "sigmoid":
        g = weights * (1 - weights) * g
    return _scores_gradient(options.scores, z, scores, torch.zeros_like(z).scatter(-1, index, g))


def _softmax_gradient(p: Tensor, g: Tensor) -> Tensor:
    return p * (g - (p * g).sum(-1, keepdim=True))


def _scores_gradient(name: str, z: Tensor, scores: Tensor, g: Tensor) -> Tensor:
    """Return the gradient of the logits from that of their scores."""
    if name == "softmax":
        return _softmax_gradient(scores, g)
    if name == "sigmoid":
        return scores * (1 - scores) * g
    if name == "sqrt_softplus":
        return z.sigmoid() / (2 * scores) * g
    return g


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
    for p, index in _mixed(z, count, jitter):
        weights = weights.scatter(-1, index, p.gather(-1, index))
    return weights


def _mixed(z: Tensor, count: int, jitter: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the softmax that weighs each chosen expert, and its index, one after the other."""
    left = z
    for _ in range(count):
        top, index = left.max(-1, keepdim=True)
        far = (top - z) / z.abs().clamp(min=top) > 2 * jitter
        yield left.masked_fill(far, -torch.inf).softmax(-1), index
        left = left.scatter(-1, index, -torch.inf)


def _sparse_mixer_gradient(z: Tensor, g: Tensor, count: int, jitter: float) -> Tensor:
    """Return the sum over chosen experts of the gradients through the softmax that weighs each."""
    dz = torch.zeros_like(z)
    for p, index in _mixed(z, count, jitter):
        dz = dz + _softmax_gradient(p, torch.zeros_like(g).scatter(-1, index, g.gather(-1, index)))
    return dz
