"""Causal softmax attention, fused or written out, as `aux.attention`."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.attention.head_map import Heads, distinct_heads
from tintc.frontend.attention.masks import MaskPattern, UnsupportedMask, read_masks
from tintc.frontend.attention.operands import Operand, Regions, find_operand
from tintc.frontend.attention.rotations import UnsupportedHeadMap
from tintc.frontend.attention.score_vectors import score_vectors
from tintc.frontend.attention.scores import Scores, find_scores
from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.layouts import vector_layout
from tintc.frontend.graph.node_queries import rows_width, single_sources
from tintc.frontend.graph.obstacle_words import SCORES, TWO_WAY
from tintc.frontend.graph.regions import Signatures, moves, push
from tintc.frontend.rule import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Attention
from tintc.ir.core import Value, tokens
from tintc.ir.functions import merge_heads


@dataclass
class _Cache:
    """Readings of one graph, by the signature of the region that was read: equal layers are read once.

    masks: a pattern, or what is not supported; layouts: True where results are laid out head after head.
    """

    regions: Regions
    masks: dict[tuple[tuple[int, str, float], ...], MaskPattern | UnsupportedMask] = field(default_factory=dict)
    layouts: dict[int, bool] = field(default_factory=dict)


class AttentionRule:
    """Anchored at the first value after the heads' results that something else reads: most often the one that merges
    them back to one vector per token, or, where heads are gated, one that still has a dimension of heads.

    q, k and v are read by evaluation (`head_map.read_heads`), the masks too (`masks.read_masks`); constant factors of
    q and k go into the scale.
    """

    def __init__(self) -> None:
        self._caches: weakref.WeakKeyDictionary[CapturedGraph, _Cache] = weakref.WeakKeyDictionary()

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if node not in graph.live or vector_layout(graph, node) is None:
            return NOT_MINE
        result = node
        for source in single_sources(graph, node, moves):
            result = source
        scores = find_scores(graph, result)
        if scores is None or (rows_width(graph, result) is not None and result is not node):
            return NOT_MINE
        if isinstance(scores, Fail):
            return scores
        cache = self._caches.setdefault(graph, _Cache(Regions(Signatures(graph))))
        return self._attention(graph, node, scores, cache)

    def _attention(self, graph: CapturedGraph, node: Node, scores: Scores, cache: _Cache) -> Match | Fail:
        problems = [*scores.problems]
        obstacle = SCORES * bool(problems)
        pattern = _mask_pattern(graph, scores, cache)
        if isinstance(pattern, UnsupportedMask):
            problems.append(str(pattern))
            obstacle = pattern.obstacle or obstacle
            pattern = MaskPattern()
        sources: list[Node] = []
        operands: list[Operand] = []
        for label, root in (("q", scores.q), ("k", scores.k), ("v", scores.v)):
            transposed = label == "k" and scores.k_transposed
            behind, operand = find_operand(graph, root, transposed, cache.regions)
            sources.extend(behind)
            if isinstance(operand, Operand):
                operands.append(operand)
            else:
                problems.append(f"{label}: {operand}")
        if not problems:
            problems = _disagreements(operands)
        if not problems and len(pattern.slopes) not in (0, operands[0].heads.count):
            problems = ["its bias is not one for each head"]
        if not problems and not _merges(graph, node, scores.result, cache):
            problems = ["its result is not laid out head after head"]
        if problems:
            return Fail("; ".join(problems), scores.result, tuple(sources), obstacle)
        return _matched(graph, scores, tuple(sources), operands, pattern)


def _mask_pattern(graph: CapturedGraph, scores: Scores, cache: _Cache) -> MaskPattern | UnsupportedMask:
    """Return what the masks let a query see, or what of them is not supported."""
    if not scores.masks and not scores.causal:
        return UnsupportedMask("attention has no causal mask", TWO_WAY)
    if not scores.masks:
        return MaskPattern()
    signatures = cache.regions.signatures
    key = tuple((signatures.constant(mask.node), mask.effect, mask.factor) for mask in scores.masks)
    if key not in cache.masks:
        try:
            cache.masks[key] = read_masks(graph, scores.masks)
        except UnsupportedMask as reason:
            cache.masks[key] = reason
    return cache.masks[key]


def _disagreements(operands: list[Operand]) -> list[str]:
    """Return why q, k and v do not make one attention."""
    q, k, v = (operand.heads for operand in operands)
    rotated_q, rotated_k, _ = (operand.rotated for operand in operands)
    problems: list[str] = []
    if q.head_dim != k.head_dim:
        problems.append(f"heads of q and k are {q.head_dim} and {k.head_dim} wide; they must be equal")
    if operands[2].norm is not None or v.rotation is not None:
        problems.append("the values are rotated")
    scaled = [name for name, heads in (("keys", k), ("values", v)) if heads.scales is not None]
    problems += [f"the {name} are scaled by their position, and only queries may be" for name in scaled]
    if (rotated_q.rotation is None) != (rotated_k.rotation is None):
        problems.append("only one of q and k is rotated")
    elif not _rotate_alike(rotated_q, rotated_k):
        problems.append("q and k are rotated differently")
    try:
        if any(heads.count % _shared_heads(k, v) for heads in (q, k, v)):
            problems.append("keys and values are shared by different groups of heads")
    except UnsupportedHeadMap as reason:
        problems.append(str(reason))
    return problems


def _shared_heads(k: Heads, v: Heads) -> int:
    """Return the number of groups of query heads that share a head of k and a head of v."""
    return math.lcm(distinct_heads(k.columns), distinct_heads(v.columns))


def _rotate_alike(q: Heads, k: Heads) -> bool:
    if q.rotation is None or k.rotation is None:
        return True
    if q.rotation.style != k.rotation.style or q.rotation.frequencies.shape != k.rotation.frequencies.shape:
        return False
    if not torch.equal(_order(q), _order(k)):
        return False
    return torch.allclose(q.rotation.frequencies, k.rotation.frequencies, rtol=1e-6, atol=1e-9)


def _order(heads: Heads) -> Tensor:
    """Return the order of a head's coordinates ``[head_dim]``."""
    if heads.order is None:
        return torch.arange(heads.head_dim)
    return heads.order


def _merges(graph: CapturedGraph, node: Node, result: Node, cache: _Cache) -> bool:
    """Return True if the node's vectors are the results ``[B, H, T, d]`` head after head."""
    key = cache.regions.signatures.of(node, (result,))
    if key not in cache.layouts:
        cache.layouts[key] = _puts_heads_in_order(graph, node, result)
    return cache.layouts[key]


def _puts_heads_in_order(graph: CapturedGraph, node: Node, result: Node) -> bool:
    """Return what `_merges` does, by pushing distinct numbers from the result to the node."""
    batch = 2
    length = 3
    shape = graph.shape(result, batch, length)
    layout = vector_layout(graph, node)
    if shape is None or layout is None or len(shape) not in (3, 4):
        return False
    numbers = torch.arange(1.0, 1 + torch.Size(shape).numel(), dtype=torch.float64).view(shape)
    numbers = numbers.to(graph.input_ids.meta["val"].device)
    merged = layout.take(push(graph, node, {result: numbers}, batch, length), batch, length)
    if len(shape) == 3:  # examples and heads in one dimension
        numbers = numbers.unflatten(0, (batch, -1))
    return torch.equal(merged, merge_heads(numbers))


def _matched(
    graph: CapturedGraph, scores: Scores, sources: tuple[Node, ...], operands: list[Operand], pattern: MaskPattern
) -> Match:
    q, k, v = (operand.heads for operand in operands)
    n_kv = _shared_heads(k, v)
    counts = (q.count, n_kv, n_kv)
    attributes: dict[str, Any] = {
        "n_heads": q.count,
        "n_kv_heads": n_kv,
        "head_dim": q.head_dim,
        "scale": scores.scale * q.factor * k.factor,
        "window": pattern.window,
        "slopes": pattern.slopes,
        "soft_cap": scores.soft_cap,
    }
    if v.head_dim != q.head_dim:
        attributes["value_dim"] = v.head_dim

    def build(builder: Builder, values: tuple[Value, ...]) -> Value:
        inputs = iter(values)
        cut = []
        for label, operand, count in zip("qkv", operands, counts, strict=True):
            own = tuple(islice(inputs, len(operand.sources)))
            cut.append(operand.build(builder, scores.result, own, label, count))
        vectors = score_vectors(graph, scores, operands, builder)
        kind = tokens(q.count * v.head_dim)
        return builder.emit(Attention, scores.result, tuple(cut), kind, "attention", **attributes, **vectors)

    return Match(sources, build)
