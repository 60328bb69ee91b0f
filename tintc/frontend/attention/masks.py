"""What attention masks do to scores, by evaluating them at a few lengths: causal, a sliding window, ALiBi.

Adding one number to all scores of a query changes nothing, so a bias is read relative to the query's own position:
``slope_h * (key - query)`` covers biases of the key's position alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.node_queries import PROBES
from tintc.frontend.parts import part_of

EXCLUDED = -1e4
"""A score with this or less added has probability 0."""
TOLERANCE = 1e-9
WHOLE, BLOCK, SOME = 2048, 256, 512
"""The longest text of which every entry of a mask is checked, the queries that are looked at together, and the queries
and keys that are taken of a longer text."""


@dataclass(frozen=True)
class Mask:
    """Something done to the scores. effect: ``add`` (times `factor`; booleans allow where true), ``exclude`` (where
    true), or ``multiply`` (by ones, and by zeros where a mask above excludes)."""

    node: Node
    effect: str = "add"
    factor: float = 1.0


@dataclass(frozen=True)
class Sight:
    """What a query sees: the last `window` tokens (0: all before it), with ALiBi `slopes` per head (empty: none)."""

    window: int = 0
    slopes: tuple[float, ...] = ()


class NotSeen(Exception):
    """The masks are none of these; the message is the reason, without full stop."""


def read_masks(graph: CapturedGraph, masks: Sequence[Mask]) -> Sight:
    """What the masks do together, from the softmax's down. Raises `NotSeen` with the reason.

    They are read at the longest length that the result must serve, where a window shows if it matters at all; `_probe`
    says which of their entries are checked there. At two short lengths all are.
    """
    if any(mask.node in graph.live for mask in masks):
        raise NotSeen("the attention mask depends on the tokens")
    limit = graph.max_length
    device = graph.input_ids.meta["val"].device
    places = torch.arange(limit, device=device)
    (allowed, _), *_ = _heads(graph, masks, limit, places[-1:], places)
    seen = int(allowed.sum())
    slopes = _slopes(graph, masks, limit, places) if limit > 1 else ()
    sight = Sight(seen if 0 < seen < limit else 0, slopes)
    for rows, columns in _probe(limit, sight.window, device):
        _check(sight, _heads(graph, masks, limit, rows, columns), limit, rows, columns)
    for length in {min(5, limit), min(9, limit)}:
        values = [_by_head(graph, mask.node, graph.evaluate(mask.node, 2, length), 2, length) for mask in masks]
        all_of = places[:length]
        _check(sight, _combined(masks, values, all_of, all_of), length, all_of, all_of)
    return sight


def _probe(limit: int, window: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Queries and keys, a block at a time, that are looked at in a text of that length: all, up to `WHOLE` tokens.

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
    """As `_combined`, of one text of that length."""
    values = [_by_head(graph, mask.node, part_of(graph, mask.node, length, rows, columns), 1, length) for mask in masks]
    return _combined(masks, values, rows, columns)


def _combined(
    masks: Sequence[Mask], values: Sequence[Tensor], rows: Tensor, columns: Tensor
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Of each head, which of the keys `columns` the queries `rows` see, ``[B, R, C]``, and what is added to the scores
    of these, relative to the query's own position, which must be among the keys; None for nothing. One pair if all
    heads are alike.

    values: of each mask, as `_by_head` gives it.
    """
    shape = (max(value.shape[0] for value in values), len(rows), len(columns))
    first: Tensor | None = None
    for head in range(max(value.shape[1] for value in values)):
        seen = torch.ones(shape, dtype=torch.bool, device=rows.device)
        bias: Tensor | None = None
        for mask, value in zip(masks, values, strict=True):
            at = value[:, head if value.shape[1] > 1 else 0].expand(shape)
            if mask.effect == "multiply":
                if bool((seen & (at != 1)).any()):
                    raise NotSeen("scores that are seen are multiplied by other numbers than 1")
                continue
            if at.dtype == torch.bool:
                seen = seen & (~at if mask.effect == "exclude" else at)
                continue
            added = at.double() * mask.factor
            seen = seen & (added > EXCLUDED)
            counted = torch.where(added > EXCLUDED, added, 0.0)
            bias = counted if bias is None else bias + counted
        if first is not None and not torch.equal(seen, first):
            raise NotSeen("heads see different tokens")
        first = seen
        if bias is not None:
            own = torch.searchsorted(columns, rows)[None, :, None].expand(shape[0], -1, 1)
            bias = torch.where(seen, bias - bias.gather(2, own), 0.0)
        yield seen, bias


def _by_head(graph: CapturedGraph, node: Node, value: Tensor, batch: int, length: int) -> Tensor:
    """A mask's `value` as ``[1 or B, 1 or H, 1 or R, 1 or C]``; of three dimensions, the first may count examples and
    heads."""
    for size in (length, *(probe for _, probe in PROBES)):
        shape = graph.shape(node, batch, size)
        if shape is None or len(shape) > 4 or any(dim not in (1, size) for dim in shape[-2:]):
            raise NotSeen("the attention mask is not [batch, heads, length, length]")
    if value.dim() == 3:
        one, two = (graph.shape(node, count, length) for count in (1, 2))
        counts_examples = one is not None and two is not None and two[0] == 2 * one[0]
        value = value.unflatten(0, (batch, -1)) if counts_examples else value[None]
    while value.dim() < 4:
        value = value[None]
    return value


def _slopes(graph: CapturedGraph, masks: Sequence[Mask], limit: int, places: Tensor) -> tuple[float, ...]:
    """What each head's bias loses per token of distance; none if nothing is added."""
    added = [bias for _, bias in _heads(graph, masks, limit, places[1:2], places[:2])]
    found = tuple(0.0 if bias is None else -float(bias[0, 0, 0]) for bias in added)
    return found if any(abs(slope) > TOLERANCE for slope in found) else ()


def _check(
    sight: Sight, heads: Iterator[tuple[Tensor, Tensor | None]], length: int, rows: Tensor, columns: Tensor
) -> None:
    distance = columns[None, :] - rows[:, None]
    expected = (distance <= 0) & (distance > -sight.window) if sight.window else distance <= 0
    slack = TOLERANCE * length if sight.slopes else TOLERANCE
    for head, (allowed, bias) in enumerate(heads):
        if not bool((allowed == expected).all()):
            if bool((allowed & (distance > 0)).any()):
                raise NotSeen("attention sees later tokens, only causal attention is supported")
            raise NotSeen(f"at length {length}, attention sees neither all earlier tokens nor the last few")
        if bias is None:
            continue
        slope = sight.slopes[head] if sight.slopes else 0.0
        if bool((bias - slope * torch.where(allowed, distance, 0)).abs().max() > slack):
            raise NotSeen("a bias is added to the scores that is not a multiple of the distance (not ALiBi)")
