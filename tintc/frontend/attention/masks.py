"""Masks of an attention, read by evaluating them at a few lengths: causal, a sliding window, ALiBi.

Adding one number to all scores of a query changes nothing, so a bias is read relative to the query's own position:
``slope_h * (key - query)`` covers biases of the key's position alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.attention.mask_entries import entries_at
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.node_queries import PROBES
from tintc.frontend.graph.obstacle_words import BIAS, DYNAMIC_MASK, TWO_WAY

EXCLUDED = -1e4
"""A score with this or less added has probability 0."""
TOLERANCE = 1e-9
WHOLE = 2048
"""The longest text of which every entry of a mask is checked."""
BLOCK = 256
"""Queries that are looked at together."""
SOME = 512
"""Queries and keys that are taken of a longer text."""


@dataclass(frozen=True)
class Mask:
    """One change of the scores. effect: ``add`` (times `factor`; booleans allow where true), ``exclude`` (where
    true), or ``multiply`` (by ones, and by zeros where a mask above excludes)."""

    node: Node
    effect: str = "add"
    factor: float = 1.0


@dataclass(frozen=True)
class MaskPattern:
    """The tokens that a query sees: the last `window` (0: all before it), with ALiBi `slopes` by head (empty: none)."""

    window: int = 0
    slopes: tuple[float, ...] = ()


class UnsupportedMask(Exception):
    """The masks are none of these; the message is the reason, without full stop. obstacle: as of a `Fail`."""

    def __init__(self, why: str, obstacle: str = ""):
        super().__init__(why)
        self.obstacle = obstacle


def read_masks(graph: CapturedGraph, masks: Sequence[Mask]) -> MaskPattern:
    """Return the effect of all masks together, from the softmax's down. Raises `UnsupportedMask` with the reason.

    They are read at the longest length that the result must serve, where a window shows if it matters at all; `_probe`
    says which of their entries are checked there. At two short lengths all are.
    """
    if any(mask.node in graph.live for mask in masks):
        raise UnsupportedMask("the attention mask depends on the tokens", DYNAMIC_MASK)
    limit = graph.max_length
    device = graph.input_ids.meta["val"].device
    places = torch.arange(limit, device=device)
    (allowed, _), *_ = _heads(graph, masks, limit, places[-1:], places)
    window = int(allowed.sum())
    if window == limit:  # the last query sees all
        window = 0
    pattern = MaskPattern(window, _slopes(graph, masks, limit, places))
    for rows, columns in _probe(limit, pattern.window, device):
        _check(pattern, _heads(graph, masks, limit, rows, columns), limit, rows, columns)
    for length in {min(5, limit), min(9, limit)}:
        values = [_by_head(graph, mask.node, graph.evaluate(mask.node, 2, length), 2, length) for mask in masks]
        short = places[:length]
        _check(pattern, _combined(masks, values, short, short), length, short, short)
    return pattern


def _probe(limit: int, window: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield queries and keys, a block at a time, that are checked in a text of that length: all, up to `WHOLE` tokens.

    Beyond it, `SOME` of the queries with all keys; and every query with its neighbours, with the keys where its window
    begins, and with `SOME` of all keys. Both take memory and time by the length and not by its square. What would go
    unseen is an exception for fewer queries than lie between two of the first, and for keys that are far from them and
    fewer than lie between two of the second.
    """
    places = torch.arange(limit, device=device)
    if limit <= WHOLE:
        yield from ((rows, places) for rows in places.split(BLOCK))
        return
    some = places[torch.linspace(0, limit - 1, SOME, device=device).long()]
    yield from ((rows, places) for rows in some.split(max(1, BLOCK * WHOLE // limit)))
    around = torch.arange(-BLOCK, 2 * BLOCK, device=device)
    for rows in places.split(BLOCK):
        near = rows[0] + around
        columns = torch.cat((near, near - window, some)).clamp(0, limit - 1)
        yield rows, columns.unique()


def _heads(
    graph: CapturedGraph, masks: Sequence[Mask], length: int, rows: Tensor, columns: Tensor
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield what `_combined` does, of one text of that length."""
    values: list[Tensor] = []
    for mask in masks:
        entries = entries_at(graph, mask.node, length, rows, columns)
        values.append(_by_head(graph, mask.node, entries, 1, length))
    return _combined(masks, values, rows, columns)


def _combined(
    masks: Sequence[Mask], values: Sequence[Tensor], rows: Tensor, columns: Tensor
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield, for each head, the keys that queries see, ``[B, R, C]``, and what is added to their scores, or None.

    rows: positions of the queries; columns: of the keys, the queries' own among them; values: of each mask, as of
    `_by_head`. What is added is relative to the query's own position. One pair if all heads are alike.
    """
    shape = (max(value.shape[0] for value in values), len(rows), len(columns))
    first: Tensor | None = None
    for head in range(max(value.shape[1] for value in values)):
        seen = torch.ones(shape, dtype=torch.bool, device=rows.device)
        bias: Tensor | None = None
        for mask, value in zip(masks, values, strict=True):
            own = value[:, min(head, value.shape[1] - 1)].expand(shape)
            if mask.effect == "multiply":
                if bool((seen & (own != 1)).any()):
                    raise UnsupportedMask("scores that are seen are multiplied by other numbers than 1")
            elif own.dtype == torch.bool:
                seen = seen & (own ^ (mask.effect == "exclude"))
            else:
                added = own.double() * mask.factor
                seen = seen & (added > EXCLUDED)
                added = torch.where(added > EXCLUDED, added, 0.0)
                bias = added if bias is None else bias + added
        if first is not None and not torch.equal(seen, first):
            raise UnsupportedMask("heads see different tokens")
        first = seen
        if bias is not None:
            itself = torch.searchsorted(columns, rows)[None, :, None].expand(shape[0], -1, 1)
            bias = torch.where(seen, bias - bias.gather(2, itself), 0.0)
        yield seen, bias


def _by_head(graph: CapturedGraph, node: Node, value: Tensor, batch: int, length: int) -> Tensor:
    """Return a mask's `value` as ``[1 or B, 1 or H, 1 or R, 1 or C]``.

    Of three dimensions, the first may count examples and heads.
    """
    for size in (length, *(probe for _, probe in PROBES)):
        shape = graph.shape(node, batch, size)
        if shape is None or len(shape) > 4 or any(dim not in (1, size) for dim in shape[-2:]):
            raise UnsupportedMask("the attention mask is not [batch, heads, length, length]")
    if value.dim() == 3:
        one, two = (graph.shape(node, count, length) for count in (1, 2))
        if one is not None and two is not None and two[0] == 2 * one[0]:
            value = value.unflatten(0, (batch, -1))
    while value.dim() < 4:
        value = value[None]
    return value


def _slopes(graph: CapturedGraph, masks: Sequence[Mask], limit: int, places: Tensor) -> tuple[float, ...]:
    """Return what each head's bias loses per token of distance; empty if nothing is added, or in texts of one token."""
    if limit == 1:
        return ()
    slopes: list[float] = []
    for _, bias in _heads(graph, masks, limit, places[1:2], places[:2]):
        slopes.append(0.0 if bias is None else -float(bias[0, 0, 0]))
    if all(abs(slope) <= TOLERANCE for slope in slopes):
        return ()
    return tuple(slopes)


def _check(
    pattern: MaskPattern, heads: Iterator[tuple[Tensor, Tensor | None]], length: int, rows: Tensor, columns: Tensor
) -> None:
    """Raise `UnsupportedMask` if what the heads see at these queries and keys is not the pattern's."""
    distance = columns[None, :] - rows[:, None]
    expected = distance <= 0
    if pattern.window:
        expected &= distance > -pattern.window
    slopes = pattern.slopes
    slack = TOLERANCE * length if slopes else TOLERANCE
    for head, (allowed, bias) in enumerate(heads):
        if not bool((allowed == expected).all()):
            if bool((allowed & (distance > 0)).any()):
                raise UnsupportedMask("attention sees later tokens, only causal attention is supported", TWO_WAY)
            raise UnsupportedMask(f"at length {length}, attention sees neither all earlier tokens nor the last few")
        if bias is None:
            continue
        slope = slopes[head] if slopes else 0.0
        if bool((bias - slope * torch.where(allowed, distance, 0).double()).abs().max() > slack):
            why = "a bias is added to the scores that is not a multiple of the distance (not ALiBi)"
            raise UnsupportedMask(why, BIAS)
