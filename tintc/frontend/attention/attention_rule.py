"""Causal softmax attention, fused or written out, as `aux.attention`."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.attention.head_map import Heads, distinct_heads
from tintc.frontend.attention.masks import NotSeen, Sight, read_masks
from tintc.frontend.attention.operands import Operand, Regions, find_operand, joint_gain
from tintc.frontend.attention.rotations import NotHeads
from tintc.frontend.attention.scores import Scores, find_scores
from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.layouts import vector_layout
from tintc.frontend.graph.node_queries import rows_width, single_sources
from tintc.frontend.graph.regions import Signatures, is_linear, moves, push
from tintc.frontend.rules.base import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Attention
from tintc.ir.core import Value, tokens
from tintc.ir.functions import merge_heads


@dataclass
class _Memory:
    """What has been found out about one graph, by the signature of the region it was found in."""

    regions: Regions
    masks: dict[tuple[tuple[int, str, float], ...], Sight | str] = field(default_factory=dict)
    layouts: dict[int, bool] = field(default_factory=dict)


class AttentionRule:
    """Anchored at the first value after the heads' results that something else reads: most often the one that merges
    them back to one vector per token, or, where heads are gated, one that still has a dimension of heads.

    q, k and v are read by evaluation (`heads.classify`), the masks too (`masks.read_masks`); constant factors of q
    and k go into the scale.
    """

    def __init__(self) -> None:
        self._memory: weakref.WeakKeyDictionary[CapturedGraph, _Memory] = weakref.WeakKeyDictionary()

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if node not in graph.live or vector_layout(graph, node) is None:
            return NOT_MINE
        result = [node, *single_sources(graph, node, moves)][-1]
        found = find_scores(graph, result)
        if found is None or rows_width(graph, result) is not None:
            return NOT_MINE
        memory = self._memory.setdefault(graph, _Memory(Regions(Signatures(graph))))
        if isinstance(found, Fail):
            return found
        return self._attention(graph, node, found, memory)

    def _attention(self, graph: CapturedGraph, node: Node, found: Scores, memory: _Memory) -> Match | Fail:
        problems, sight = [*found.problems], _sight(graph, found, memory)
        if not isinstance(sight, Sight):
            problems.append(sight)
            sight = Sight()
        sources: list[Node] = []
        operands: list[Operand] = []
        for label, root in (("q", found.q), ("k", found.k), ("v", found.v)):
            behind, result = find_operand(graph, root, label == "k" and found.k_transposed, memory.regions)
            sources.extend(behind)
            if isinstance(result, Operand):
                operands.append(result)
            else:
                problems.append(f"{label}: {result}")
        if not problems:
            problems = _disagreements(operands)
        if not problems and len(sight.slopes) not in (0, operands[0].heads.count):
            problems = ["its bias is not one for each head"]
        if not problems and not _merges(graph, node, found.result, memory):
            problems = ["its result is not laid out head after head"]
        if problems:
            return Fail("; ".join(problems), found.result, tuple(sources))
        return _matched(graph, found, tuple(sources), operands, sight)


def _sight(graph: CapturedGraph, found: Scores, memory: _Memory) -> Sight | str:
    """What the masks let a query see, or why that is not supported."""
    if not found.masks:
        return Sight() if found.causal else "attention has no causal mask"
    key = tuple((memory.regions.signatures.constant(mask.node), mask.effect, mask.factor) for mask in found.masks)
    if key not in memory.masks:
        try:
            memory.masks[key] = read_masks(graph, found.masks)
        except NotSeen as reason:
            memory.masks[key] = str(reason)
    return memory.masks[key]


def _disagreements(operands: list[Operand]) -> list[str]:
    q, k, v = (operand.heads for operand in operands)
    turns = [operand.rotation for operand in operands]
    problems = []
    if q.head_dim != k.head_dim:
        problems.append(f"heads of q and k are {q.head_dim} and {k.head_dim} wide; they must be equal")
    if operands[2].norm is not None or v.rotation is not None or abs(v.factor - 1) > 1e-9:
        problems.append("the values are scaled or rotated")
    scaled = [name for name, heads in (("keys", k), ("values", v)) if heads.scales is not None]
    problems += [f"the {name} are scaled by their position, and only queries may be" for name in scaled]
    if (turns[0].rotation is None) != (turns[1].rotation is None):
        problems.append("only one of q and k is rotated")
    elif not _turn_alike(*turns[:2]):
        problems.append("q and k are rotated differently")
    try:
        if any(heads.count % _shared_heads(k, v) for heads in (q, k, v)):
            problems.append("keys and values are shared by different groups of heads")
    except NotHeads as reason:
        problems.append(str(reason))
    return problems


def _shared_heads(k: Heads, v: Heads) -> int:
    """Into how many groups the query heads fall that share a head of k and a head of v."""
    return math.lcm(distinct_heads(k.columns), distinct_heads(v.columns))


def _turn_alike(q: Heads, k: Heads) -> bool:
    if q.rotation is None or k.rotation is None:
        return True
    if q.rotation.style != k.rotation.style or q.rotation.frequencies.shape != k.rotation.frequencies.shape:
        return False
    plain = torch.arange(q.head_dim)
    orders = [plain if heads.order is None else heads.order for heads in (q, k)]
    return torch.equal(*orders) and torch.allclose(q.rotation.frequencies, k.rotation.frequencies, rtol=1e-6, atol=1e-9)


def _merges(graph: CapturedGraph, node: Node, result: Node, memory: _Memory) -> bool:
    """Whether the node's vectors are the results ``[B, H, T, d]`` head after head, found by pushing numbers through."""
    key = memory.regions.signatures.of(node, (result,))
    if key not in memory.layouts:
        shape, layout = graph.shape(result, 2, 3), vector_layout(graph, node)
        memory.layouts[key] = False
        if shape is not None and layout is not None and len(shape) in (3, 4):
            numbers = torch.arange(1.0, 1 + torch.Size(shape).numel(), dtype=torch.float64).view(shape)
            numbers = numbers.to(graph.input_ids.meta["val"].device)
            merged = layout.take(push(graph, node, {result: numbers}, 2, 3), 2, 3)
            expected: Tensor = merge_heads(numbers if len(shape) == 4 else numbers.unflatten(0, (2, -1)))
            memory.layouts[key] = torch.equal(merged, expected)
    return memory.layouts[key]


def _matched(
    graph: CapturedGraph, found: Scores, sources: tuple[Node, ...], operands: list[Operand], sight: Sight
) -> Match:
    q, k, v = (operand.heads for operand in operands)
    n_kv = _shared_heads(k, v)
    counts = (q.count, n_kv, n_kv)
    sizes = {"n_heads": q.count, "n_kv_heads": n_kv, "head_dim": q.head_dim, "scale": found.scale * q.factor * k.factor}
    sees = {"window": sight.window, "slopes": sight.slopes, "soft_cap": found.soft_cap}

    def build(builder: Builder, values: tuple[Value, ...]) -> Value:
        parts, rest = [], values
        for label, operand, count in zip("qkv", operands, counts, strict=True):
            own, rest = rest[: len(operand.sources)], rest[len(operand.sources) :]
            parts.append(operand.build(builder, found.result, own, label, count))
        named: dict[str, str | int] = {}
        rotation = operands[0].rotation.rotation
        if rotation is not None:
            name = _frequencies(graph, found.q, rotation.frequencies)
            named = {"inv_freq": builder.parameter(name), "rotary_style": rotation.style}
        gain = joint_gain(graph, operands[0], operands[1])
        if gain is not None:
            named["gain"] = builder.parameter(graph.derive_constant("gain", gain))
        if q.scales is not None:
            named["query_scale"] = builder.parameter(graph.derive_constant("query_scale", q.scales))
        if found.sinks:
            named["sinks"] = builder.parameter(found.sinks)
        if v.head_dim != q.head_dim:
            named["value_dim"] = v.head_dim
        width = tokens(q.count * v.head_dim)
        return builder.emit(Attention, found.result, tuple(parts), width, "attention", **sizes, **named, **sees)

    return Match(sources, build)


def _frequencies(graph: CapturedGraph, root: Node, frequencies: Tensor) -> str:
    """A buffer of the model that holds these frequencies, or a constant made of them."""
    seen: set[Node] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        name = graph.names.get(node)
        if name is not None and name not in graph.parameter_names:
            tensor = graph.tensors[name].double().cpu()
            if tensor.shape == frequencies.shape and torch.allclose(tensor, frequencies, rtol=1e-6, atol=1e-12):
                return name
        sources = [source for source in node.all_input_nodes if source not in seen and source is not graph.input_ids]
        seen.update(sources)
        stack.extend(source for source in sources if node not in graph.live or is_linear(graph, node))
    return graph.derive_constant("rotary", frequencies)
