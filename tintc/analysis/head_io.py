"""The numbers of an embedding that every head of a block reads and writes, from the block's own tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tintc.analysis.dependence import chunk_pairs, sources_of_heads, targets_of_heads
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
    return tuple(_heads_that_act(block.spec, block.gate, layout, occupied, held, mask))


def _heads_that_act(
    spec: AttentionSpec, gate: str, layout: Layout, occupied: frozenset[int], held: bool, mask: str
) -> Iterator[Head]:
    """Yield the heads of an attention that do something, as `heads_of` says."""
    at = "tokens"
    if gate == "update":
        at = "prefixes"
    sources = _read_by_letter(spec)
    terms = {letter: _terms(spec, letter) for letter in LETTERS}
    targets = targets_of_heads(spec.w_o, spec)
    softmax = spec.kind != "linear"
    for head in range(spec.n_heads):
        slots = {letter: _by_slot(sources[letter][head], layout) for letter in LETTERS}
        where = {letter: terms[letter][head] | _places(slots[letter], occupied, held) for letter in LETTERS}
        seen = where["v"] & _visible(spec, mask)
        if not softmax:
            seen &= where["k"]
        if not seen or not targets[head] or not (softmax or at in where["q"]):
            continue
        reads = _reads(LETTERS["q"], at, at, slots["q"], layout, occupied, held)
        for place in sorted(seen):
            for letter in "kv":
                reads += _reads(LETTERS[letter], place, mask or place, slots[letter], layout, occupied, held)
        writes = _by_slot(targets[head], layout).items()
        yield Head(head, tuple(reads), tuple(SlotRange("result", at, slot, runs) for slot, runs in writes))


def _read_by_letter(spec: AttentionSpec) -> dict[str, list[list[int]]]:
    """Return the numbers that every head's query, key and value are made of, by letter; what is added to q and k is
    among them."""
    sources = {letter: sources_of_heads(getattr(spec, f"w_{letter}"), spec) for letter in LETTERS}
    for letter, more in (("q", spec.w_p), ("k", spec.w_r)):
        if more is not None:
            added = sources_of_heads(more, spec)
            sources[letter] = [sorted({*own, *other}) for own, other in zip(sources[letter], added, strict=True)]
    return sources


def _reads(
    as_: str,
    place: str,
    name: str,
    slots: Mapping[int, StridedRuns],
    layout: Layout,
    occupied: frozenset[int],
    held: bool,
) -> list[SlotRange]:
    """Return what is read of these slots at tokens, or at prefixes, where they hold something. name: of who is seen."""
    if place == "tokens":
        return [SlotRange(as_, name, slot, runs) for slot, runs in slots.items() if slot in occupied]
    return [SlotRange(as_, name, slot, runs) for slot, runs in slots.items() if held and slot <= layout.stack]


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
            pairs = chunk_pairs(spec.stages)
            at = [width * chunk // layout.pitch for width, chunk in ((spec.stages[0].width, into) for _, into in pairs)]
            to = [spec.stages[-1].width * out // layout.pitch for out, _ in pairs]
            return sorted(set(at)), sorted(set(to))
        case AttentionSpec():
            raise ValueError("an attention has heads")
