"""Routing recognised by what it computes: the options of `aux.route` whose weights are those of a graph's router.

A router's region, from its logits to the chosen experts and their weights, is evaluated on random logits, and so are
all combinations of options until one agrees. What the graph has is used to make the search short: the numbers in it,
and the vectors over experts that it reads, which are random in the comparison too, so that no two roles of a vector
give the same by accident.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from tintc.ir.router import GROUP_SCORES, NORMALISATIONS, SCORES, WEIGHINGS, RouterOptions, routing_weights

ROWS = 256
"""Tokens on whose logits regions and options are compared."""
FEW = 16
"""Tokens after which most options are given up."""
SMALL = 1e-3
"""A number of the graph below this may be a term or a floor of a sum of weights."""
TOLERANCE = 1e-13
"""Relative, of each weight, in fp64: small enough to tell a term of 1e-12 in a sum from a floor of 1e-12."""


@dataclass(frozen=True)
class Behaviour:
    """What a router did: for logits ``[n, E]`` the weights ``[n, E]``, zero for experts that are not chosen.

    chosen: how many are; numbers: the constants in its graph; vectors: those over experts that it reads, ``[E]``, by
    name.
    """

    logits: Tensor
    weights: Tensor
    chosen: int
    numbers: tuple[float, ...]
    vectors: Mapping[str, Tensor]


def random_logits(experts: int) -> Tensor:
    """Return logits ``[ROWS, E]`` of several sizes; a quarter of the rows is so far below 0 that sums of sigmoids are
    tiny."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([0.3, 1.0, 3.0], dtype=torch.float64)
    row = torch.arange(ROWS)
    below = torch.where(row % 4 == 3, -30.0, 0.0)
    logits = torch.randn(ROWS, experts, generator=generator, dtype=torch.float64)
    return logits * size[row % 3, None] + below[:, None]


def random_vector(experts: int, place: int) -> Tensor:
    """Return the numbers that stand in place of the vector over experts with that number: between 0.05 and 0.35."""
    generator = torch.Generator().manual_seed(1 + place)
    return 0.05 + 0.3 * torch.rand(experts, generator=generator, dtype=torch.float64)


def options_of(seen: Behaviour, likely: Iterable[RouterOptions] = ()) -> RouterOptions | None:
    """Return options with which `routing_weights` does what was seen, vectors by their names; None if there are none.

    likely: options that are tried before all others, such as those of other layers. Of options that do the same, the
    first is taken: scores in the order of `SCORES`, vectors rather than none, no groups rather than some.
    """
    for options in likely:
        if set(options.vectors().values()) <= seen.vectors.keys() and _agrees(_weights(options, seen), seen.weights):
            return options
    few = replace(seen, logits=seen.logits[:FEW], weights=seen.weights[:FEW])
    for options in _choices(seen):
        if not _chooses_alike(options, few) or not _chooses_alike(options, seen):
            continue
        for weighed in _weighings(options, seen):
            if _agrees(_weights(weighed, seen), seen.weights):
                return weighed
    return None


def _chooses_alike(options: RouterOptions, seen: Behaviour) -> bool:
    return torch.equal(_weights(options, seen) != 0, seen.weights != 0)


def _choices(seen: Behaviour) -> Iterator[RouterOptions]:
    """Yield options by which experts can be chosen; they weigh by the scores alone."""
    plain = RouterOptions(chosen=seen.chosen)
    for name in SCORES:
        options = replace(plain, scores=name)
        if name == "sparse_mixer":
            for number in seen.numbers:
                if 0 < number < 1:
                    yield replace(options, jitter=number / 2)
            continue
        for bias in (*seen.vectors, ""):
            biased = replace(options, bias=bias)
            yield biased
            for groups in _divisors(seen):
                for kept in sorted({int(n) for n in seen.numbers if n in range(1, groups)}):
                    if kept * seen.logits.shape[1] // groups >= seen.chosen:
                        for score in GROUP_SCORES:
                            yield replace(biased, groups=groups, kept_groups=kept, group_score=score)


def _divisors(seen: Behaviour) -> list[int]:
    """Return the numbers of the graph that are a number of groups of more than one expert."""
    experts = seen.logits.shape[1]
    return sorted({int(n) for n in seen.numbers if n in range(2, experts // 2 + 1) and experts % n == 0})


def _weighings(options: RouterOptions, seen: Behaviour) -> Iterator[RouterOptions]:
    """Yield the same choice with the ways to weigh, each with the factor that fits best."""
    small = sorted(n for n in seen.numbers if 0 < n < SMALL)
    for gains in (*seen.vectors, ""):
        for weigh, normalise in product(WEIGHINGS, NORMALISATIONS):
            weighed = replace(options, gains=gains, weigh=weigh, normalise=normalise)
            variants = [weighed]
            if normalise == "sum":
                variants = [replace(weighed, eps=number) for number in small]
                variants += [replace(weighed, floor=number) for number in small]
                variants.append(weighed)
            for variant in variants:
                yield replace(variant, factor=_factor(_weights(variant, seen), seen))


def _factor(weights: Tensor, seen: Behaviour) -> float:
    """Return by what the weights are to be multiplied; a constant of the graph if one is close."""
    chosen = seen.weights != 0
    factor = float((seen.weights[chosen] / weights[chosen]).median())
    for number in (1.0, *seen.numbers):
        if abs(factor - number) <= TOLERANCE * abs(number):
            return number
    return factor


def _weights(options: RouterOptions, seen: Behaviour) -> Tensor:
    vectors = {key: seen.vectors[name] for key, name in options.vectors().items()}
    return routing_weights(options, seen.logits, vectors)


def _agrees(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= TOLERANCE * b.abs()).all())
