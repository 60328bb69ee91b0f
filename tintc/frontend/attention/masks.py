"""What attention masks do to scores, by evaluating them at a few lengths: causal, a sliding window, ALiBi.

Adding one number to all scores of a query changes nothing, so a bias is read relative to the query's own position:
``slope_h * (key - query)`` covers biases of the key's position alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.ir.functions import causal_mask

EXCLUDED = -1e4
"""A score with this or less added has probability 0."""
TOLERANCE = 1e-9


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

    They are evaluated at the longest length that the result must serve, where a window shows if it matters at all, and
    checked at two short ones.
    """
    if any(mask.node in graph.live for mask in masks):
        raise NotSeen("the attention mask depends on the tokens")
    limit = graph.max_length
    allowed, biases = _evaluate(graph, masks, 1, limit)
    seen = int(allowed[0, -1].sum())
    sight = Sight(seen if 0 < seen < limit else 0, _slopes(biases, limit))
    _check(sight, allowed, biases, limit)
    for length in {min(5, limit), min(9, limit)}:
        _check(sight, *_evaluate(graph, masks, 2, length), length)
    return sight


def _evaluate(graph: CapturedGraph, masks: Sequence[Mask], batch: int, length: int) -> tuple[Tensor, list[Tensor]]:
    """Who sees whom, ``[B, T, T]``, and what is added to the scores of each head, ``[B, T, T]`` relative to the query's
    own position; one tensor if all heads are alike, none if nothing is added."""
    values = [_by_head(graph, mask.node, batch, length) for mask in masks]
    allowed: Tensor | None = None
    biases: list[Tensor] = []
    for head in range(max(value.shape[1] for value in values)):
        seen = torch.ones(batch, length, length, dtype=torch.bool, device=values[0].device)
        bias = torch.zeros(seen.shape, dtype=torch.float64, device=seen.device)
        for mask, value in zip(masks, values, strict=True):
            at = value[:, head if value.shape[1] > 1 else 0].expand(seen.shape)
            if mask.effect == "multiply":
                if bool((seen & (at != 1)).any()):
                    raise NotSeen("scores that are seen are multiplied by other numbers than 1")
                continue
            if at.dtype == torch.bool:
                seen = seen & (~at if mask.effect == "exclude" else at)
                continue
            added = at.double() * mask.factor
            seen = seen & (added > EXCLUDED)
            bias = bias + torch.where(added > EXCLUDED, added, 0.0)
        if allowed is not None and not torch.equal(seen, allowed):
            raise NotSeen("heads see different tokens")
        allowed = seen
        bias = torch.where(seen, bias - bias.diagonal(dim1=1, dim2=2)[..., None], 0.0)
        biases.append(bias)
    assert allowed is not None
    return allowed, biases if any(bool(bias.abs().max() > TOLERANCE) for bias in biases) else []


def _by_head(graph: CapturedGraph, node: Node, batch: int, length: int) -> Tensor:
    """A mask as ``[1 or B, 1 or H, 1 or T, T]``; of ``[., T, T]``, the first dimension may count examples and heads."""
    value = graph.evaluate(node, batch, length)
    if value.dim() == 3:
        one, two = (graph.shape(node, count, length) for count in (1, 2))
        counts_examples = one is not None and two is not None and two[0] == 2 * one[0]
        value = value.unflatten(0, (batch, -1)) if counts_examples else value[None]
    while value.dim() < 4:
        value = value[None]
    if value.dim() != 4 or value.shape[-1] not in (1, length) or value.shape[-2] not in (1, length):
        raise NotSeen("the attention mask is not [batch, heads, length, length]")
    return value


def _slopes(biases: list[Tensor], length: int) -> tuple[float, ...]:
    """What each head's bias loses per token of distance."""
    return tuple(-float(bias[0, 1, 0]) for bias in biases) if length > 1 else ()


def _check(sight: Sight, allowed: Tensor, biases: list[Tensor], length: int) -> None:
    causal = causal_mask(length, allowed.device)
    if bool((allowed & ~causal).any()):
        raise NotSeen("attention sees later tokens, only causal attention is supported")
    if not bool((allowed == causal_mask(length, allowed.device, sight.window)).all()):
        raise NotSeen(f"at length {length}, attention sees neither all earlier tokens nor the last few")
    places = torch.arange(length, dtype=torch.float64, device=allowed.device)
    distance = torch.where(allowed, places[None, :] - places[:, None], 0.0)
    for slope, bias in zip(sight.slopes, biases, strict=bool(biases)):
        if bool((bias - slope * distance).abs().max() > TOLERANCE * length):
            raise NotSeen("a bias is added to the scores that is not a multiple of the distance (not ALiBi)")
    if biases and not sight.slopes:
        raise NotSeen("a bias is added to the scores that is not a multiple of the distance (not ALiBi)")
