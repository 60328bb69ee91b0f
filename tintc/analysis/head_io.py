"""The numbers of an embedding that every head of a block reads and writes, from the block's own tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

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
    Split,
    SplitStage,
    VocabularySpec,
)
from tintc.ir.columns import StridedRuns, strided_runs_of
from tintc.ir.layout import Layout
from tintc.ir.structure import StructuralBlock

LETTERS = {"q": "query", "k": "key", "v": "value"}


@dataclass(frozen=True)
class SlotRange:
    """Numbers of one slot. as_: ``query``, ``key``, ``value`` or ``result``, empty in blocks without heads; at: which
    positions of the sequence; slot: of their embeddings, counted in pitches (in a prefix: the stacked row, or S for the
    bias); numbers: within the slot."""

    as_: str
    at: str
    slot: int
    numbers: StridedRuns


@dataclass(frozen=True)
class Head:
    """The reads and writes of one head, or of a block without heads (index -1)."""

    index: int
    reads: tuple[SlotRange, ...]
    writes: tuple[SlotRange, ...]


def heads_of(
    block: StructuralBlock, layout: Layout, occupied: frozenset[int], held: bool, mask: str
) -> tuple[Head, ...]:
    """Return the heads that do something.

    occupied: slots of the tokens that hold anything; held: whether prefixes hold weights; mask: who is seen (empty:
    everybody).

    A head returns nothing where its values are zero, or, unless it is a softmax, where its keys or its queries are. The
    gate says whose results count: the tokens', or in descent the prefixes'.
    """
    if not isinstance(block.spec, AttentionSpec):
        at = "tokens"
        if held and not occupied:
            at = "prefixes"
        return (_whole(block.spec, layout, at),)
    spec = block.spec
    at = "tokens"
    if block.gate == "update":
        at = "prefixes"
    sources = {letter: _sources(getattr(spec, f"w_{letter}"), spec) for letter in "qkv"}
    for letter, more in (("q", spec.w_p), ("k", spec.w_r)):
        if more is not None:
            added = _sources(more, spec)
            sources[letter] = [sorted({*own, *other}) for own, other in zip(sources[letter], added, strict=True)]
    terms = {letter: _terms(spec, letter) for letter in "qkv"}
    targets = _targets(spec.w_o, spec)
    heads: list[Head] = []
    for head in range(spec.n_heads):
        slots = {letter: _by_slot(sources[letter][head], layout) for letter in "qkv"}
        where = {letter: terms[letter][head] | _places(slots[letter], occupied, held) for letter in "qkv"}
        softmax = spec.kind != "linear"
        seen = (where["v"] if softmax else where["v"] & where["k"]) & _visible(spec, mask)
        if not seen or not targets[head] or not (softmax or at in where["q"]):
            continue
        reads = [("query", at, at, slots["q"])]
        reads += [(LETTERS[x], place, mask if mask else place, slots[x]) for place in sorted(seen) for x in "kv"]
        writes = _by_slot(targets[head], layout).items()
        heads.append(
            Head(
                head,
                tuple(
                    SlotRange(as_, name, slot, runs)
                    for as_, place, name, chosen in reads
                    for slot, runs in chosen.items()
                    if (slot in occupied if place == "tokens" else held and slot <= layout.stack)
                ),
                tuple(SlotRange("result", at, slot, runs) for slot, runs in writes),
            )
        )
    return tuple(heads)


def _visible(spec: AttentionSpec, mask: str) -> set[str]:
    """Return the positions that the mask leaves. A softmax in a linear head's place has a mask where that head needs
    none."""
    if mask:
        return {"tokens"}
    return {"prefixes"} if spec.kind == "sink" else {"tokens", "prefixes"}


def _places(slots: Mapping[int, object], occupied: frozenset[int], held: bool) -> set[str]:
    """Return the positions at which what stands in these slots may be other than zero."""
    return ({"tokens"} if occupied.intersection(slots) else set()) | ({"prefixes"} if held and slots else set())


def _terms(spec: AttentionSpec, letter: str) -> list[set[str]]:
    """Return the positions at which a head's position term is not zero, head by head."""
    term = getattr(spec, f"positions_{letter}")
    if term is None:
        return [set() for _ in range(spec.n_heads)]
    name = {"prefix": "prefixes", "tokens": "tokens"}[term.kind]
    return [{name} if on else set() for on in (term.lam.build() != 0).tolist()]


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


def _sources(split: Split, spec: AttentionSpec) -> list[list[int]]:
    """Return the numbers that a head's part is made of, head by head."""
    return _grouped(((out // spec.width, into) for out, into in _pairs(split, spec)), spec.n_heads)


def _targets(split: Split, spec: AttentionSpec) -> list[list[int]]:
    """Return the numbers that a head is written to, head by head."""
    return _grouped(((into // spec.width, out) for out, into in _pairs(split, spec)), spec.n_heads)


def _grouped(pairs: Iterable[tuple[int, int]], count: int) -> list[list[int]]:
    """Return the numbers of every head, sorted, from pairs (head, number)."""
    numbers: list[set[int]] = [set() for _ in range(count)]
    for head, number in pairs:
        numbers[head].add(number)
    return [sorted(of_head) for of_head in numbers]


def _by_slot(numbers: Iterable[int], layout: Layout) -> dict[int, StridedRuns]:
    """Return runs of numbers within their slot, by slot."""
    slots: dict[int, list[int]] = defaultdict(list)
    for number in numbers:
        slots[number // layout.pitch].append(number % layout.pitch)
    return {slot: strided_runs_of(inside) for slot, inside in slots.items()}


def _whole(spec: BlockSpec, layout: Layout, at: str) -> Head:
    """Return a block without heads as one head that reads and writes whole slots, where they hold something."""
    reads, writes = _slots(spec, layout)
    full = ((0, layout.pitch, 1),)
    return Head(
        -1,
        tuple(SlotRange("", at, s, full) for s in reads),
        tuple(SlotRange("result", at, s, full) for s in writes),
    )


def _slots(spec: BlockSpec, layout: Layout) -> tuple[list[int], list[int]]:
    """Return (slots that a block without heads reads, slots that it changes)."""
    match spec:
        case GroupNormSpec():
            inside = sorted({slot for group in spec.groups for slot in group})
            return inside, inside + ([spec.inverse] if spec.inverse >= 0 else [])
        case ActivationSpec():
            return list(spec.slots), list(spec.slots)
        case ProductSpec():
            return [spec.target, spec.factor], [spec.target]
        case VocabularySpec() | ChosenSpec() | InverseRootSpec() | ConvolutionSpec() | PointwiseSpec():
            return [0], [0]
        case RouterSpec():
            tiles = layout.tiles(spec.experts)
            return list(range(tiles * (1 + spec.backward))), list(range(tiles))
        case RecurrenceSpec():
            inside = list(range(spec.starts[-1]))
            place = 0 if spec.transposed else 2
            return inside, list(range(layout.tiles(spec.options.mixed_widths(place, spec.transposed)[1])))
        case LinearSpec():
            pairs = _chunk_pairs(spec.stages)
            at = [width * chunk // layout.pitch for width, chunk in ((spec.stages[0].width, into) for _, into in pairs)]
            to = [spec.stages[-1].width * out // layout.pitch for out, _ in pairs]
            return sorted(set(at)), sorted(set(to))
        case AttentionSpec():
            raise ValueError("an attention has heads")


def _chunk_pairs(stages: tuple[SplitStage, ...]) -> list[tuple[int, int]]:
    """Return (out, in) of every chunk that depends on another."""
    total: Tensor | None = None
    for stage in stages:
        weight = stage.weight.build() != 0
        here = weight.any(0) if stage.kind == "dimension" else torch.diag(weight.flatten(1).any(1))
        total = here.double() if total is None else here.double() @ total
    assert total is not None
    return [(out, into) for out, into in total.nonzero().tolist()]
