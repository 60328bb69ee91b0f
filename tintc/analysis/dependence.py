"""Which numbers depend on which, through chains of split operations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from tintc.ir.block_specs import AttentionSpec, Split, SplitStage


def links(stage: SplitStage) -> tuple[Tensor, Tensor]:
    """Return (into, out): which numbers a split operation reads, and those that depend on them, pair by pair."""
    first, second, third = stage.weight.build().nonzero().unbind(1)
    return stage.ends(first, second, third)


def _links(stage: SplitStage) -> dict[int, list[int]]:
    """Return the numbers that depend on a number which a split operation reads, by that number."""
    targets: dict[int, list[int]] = defaultdict(list)
    into, out = links(stage)
    for source, target in zip(into.tolist(), out.tolist(), strict=True):
        targets[source].append(target)
    return targets


def _pairs(split: Split, spec: AttentionSpec) -> set[tuple[int, int]]:
    """Return (out, in) of every number that depends on another."""
    if split is None:
        return set()
    size = split[0].n_heads * split[0].width if split else spec.n_heads * spec.width
    pairs = {(number, number) for number in range(size)}
    for stage in split:
        links = _links(stage)
        pairs = {(out, into) for middle, into in pairs for out in links.get(middle, ())}
    return pairs


def sources_of_heads(split: Split, spec: AttentionSpec) -> list[list[int]]:
    """Return the numbers that a head's part is made of, head by head."""
    return _grouped(((out // spec.width, into) for out, into in _pairs(split, spec)), spec.n_heads)


def targets_of_heads(split: Split, spec: AttentionSpec) -> list[list[int]]:
    """Return the numbers that a head is written to, head by head."""
    return _grouped(((into // spec.width, out) for out, into in _pairs(split, spec)), spec.n_heads)


def _grouped(pairs: Iterable[tuple[int, int]], count: int) -> list[list[int]]:
    """Return the numbers of every head, sorted, from pairs (head, number)."""
    numbers: list[set[int]] = [set() for _ in range(count)]
    for head, number in pairs:
        numbers[head].add(number)
    return [sorted(of_head) for of_head in numbers]


def chunk_pairs(stages: tuple[SplitStage, ...]) -> list[tuple[int, int]]:
    """Return (out, in) of every chunk that depends on another."""
    total: Tensor | None = None
    for stage in stages:
        weight = stage.weight.build() != 0
        here = weight.any(0) if stage.kind == "dimension" else torch.diag(weight.flatten(1).any(1))
        total = here.double() if total is None else here.double() @ total
    assert total is not None
    return [(out, into) for out, into in total.nonzero().tolist()]
