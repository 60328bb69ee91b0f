"""Causal softmax attention, fused or written out, as `aux.attention`."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.execution import opname
from tintc.frontend.graph import CapturedGraph
from tintc.frontend.heads import Heads, NotHeads, classify, distinct_heads
from tintc.frontend.masks import why_not_causal
from tintc.frontend.patterns import rows_width, single_sources
from tintc.frontend.regions import Signatures, is_linear, moves, push
from tintc.frontend.rules.base import NOT_MINE, Fail, Match
from tintc.frontend.rules.scores import Scores, find_scores
from tintc.ir.auxiliary import Attention, Select
from tintc.ir.core import Value, tokens
from tintc.ir.functions import merge_heads


@dataclass
class _Memory:
    """What has been found out about one graph, by the signature of the region it was found in."""

    signatures: Signatures
    heads: dict[tuple[int, bool], Heads | str] = field(default_factory=dict)
    masks: dict[int, str | None] = field(default_factory=dict)
    layouts: dict[int, bool] = field(default_factory=dict)


class AttentionRule:
    """Anchored at the value that merges the heads back to one vector per token.

    q, k and v are read by evaluation (`heads.classify`), the mask too (`masks.why_not_causal`); constant factors of q
    and k go into the scale.
    """

    def __init__(self) -> None:
        self._memory: weakref.WeakKeyDictionary[CapturedGraph, _Memory] = weakref.WeakKeyDictionary()

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if not moves(node) or rows_width(graph, node) is None:
            return NOT_MINE
        merged = single_sources(graph, node, moves)
        found = find_scores(graph, merged[-1]) if merged else None
        if found is None:
            return NOT_MINE
        if node not in graph.live or rows_width(graph, merged[-1]) is not None:
            return NOT_MINE
        memory = self._memory.setdefault(graph, _Memory(Signatures(graph)))
        if isinstance(found, Fail):
            return found
        return self._attention(graph, node, found, memory)

    def _attention(self, graph: CapturedGraph, node: Node, found: Scores, memory: _Memory) -> Match | Fail:
        problems = [*found.problems, *_mask_problems(graph, found, memory)]
        sources: list[Node] = []
        heads: list[Heads] = []
        for label, operand in (("q", found.q), ("k", found.k), ("v", found.v)):
            source, result = _operand(graph, operand, label == "k" and found.k_transposed, memory)
            sources.append(source)
            if isinstance(result, Heads):
                heads.append(result)
            else:
                problems.append(f"{label}: {result}")
        if not problems:
            problems = _disagreements(heads)
        if not problems and not _merges(graph, node, found.result, memory):
            problems = ["its result is not laid out head after head"]
        if problems:
            return Fail("; ".join(problems), found.result, tuple(sources))
        return _matched(graph, node, found, tuple(sources), heads)


def _mask_problems(graph: CapturedGraph, found: Scores, memory: _Memory) -> list[str]:
    problems = []
    for mask in found.masks:
        key = memory.signatures.constant(mask)
        if key not in memory.masks:
            memory.masks[key] = why_not_causal(graph, mask)
        problem = memory.masks[key]
        if problem:
            problems.append(problem)
    if not found.masks and not found.causal:
        problems.append("attention has no causal mask")
    return problems


def _operand(graph: CapturedGraph, root: Node, transposed: bool, memory: _Memory) -> tuple[Node, Heads | str]:
    """The value q, k or v is cut from, and how (or why not)."""
    chain = [root, *single_sources(graph, root, lambda node: is_linear(graph, node))]
    sources = [node for node in chain if rows_width(graph, node) is not None]
    if not sources:
        last = chain[-1]
        return last, f"it comes from aten.{opname(last)} in {graph.where(last)}, which is not one vector per token"
    source = sources[-1]
    key = (memory.signatures.of(root, source), transposed)
    if key not in memory.heads:
        try:
            memory.heads[key] = classify(graph, root, source, transposed)
        except NotHeads as reason:
            memory.heads[key] = str(reason)
    return source, memory.heads[key]


def _disagreements(heads: list[Heads]) -> list[str]:
    q, k, v = heads
    problems = []
    if not q.head_dim == k.head_dim == v.head_dim:
        problems.append(f"heads of q, k, v are {q.head_dim}, {k.head_dim}, {v.head_dim} wide; they must be equal")
    if v.rotation is not None or abs(v.factor - 1) > 1e-9:
        problems.append("the values are scaled or rotated")
    if (q.rotation is None) != (k.rotation is None):
        problems.append("only one of q and k is rotated")
    if q.rotation is not None and k.rotation is not None:
        same = q.rotation.style == k.rotation.style and q.rotation.frequencies.shape == k.rotation.frequencies.shape
        if not same or not torch.allclose(q.rotation.frequencies, k.rotation.frequencies, rtol=1e-9, atol=1e-13):
            problems.append("q and k are rotated differently")
    try:
        if distinct_heads(k.columns) != distinct_heads(v.columns) or q.count % k.count:
            problems.append("keys and values are shared by different groups of heads")
    except NotHeads as reason:
        problems.append(str(reason))
    return problems


def _merges(graph: CapturedGraph, node: Node, result: Node, memory: _Memory) -> bool:
    """Whether the layout from ``[B, H, T, d]`` to the node is head after head: distinct numbers are pushed through."""
    key = memory.signatures.of(node, result)
    if key not in memory.layouts:
        shape = graph.shape(result, 2, 3)
        memory.layouts[key] = False
        if shape is not None and len(shape) == 4:
            numbers = torch.arange(1.0, 1 + torch.Size(shape).numel(), dtype=torch.float64).view(shape)
            merged = push(graph, node, result, numbers.to(graph.input_ids.meta["val"].device), 2, 3)
            expected: Tensor = merge_heads(numbers)
            memory.layouts[key] = torch.equal(merged.cpu().reshape(-1), expected.reshape(-1))
    return memory.layouts[key]


def _matched(graph: CapturedGraph, node: Node, found: Scores, sources: tuple[Node, ...], heads: list[Heads]) -> Match:
    q, k, v = heads
    n_kv = distinct_heads(k.columns)
    cuts = (("q", q.columns), ("k", k.grouped(n_kv).columns), ("v", v.grouped(n_kv).columns))
    scale = found.scale * q.factor * k.factor

    def build(builder: Builder, values: tuple[Value, ...]) -> Value:
        operands = tuple(
            _select(builder, found.result, value, label, columns.flatten().tolist())
            for value, (label, columns) in zip(values, cuts, strict=True)
        )
        rotary = {}
        if q.rotation is not None:
            name = _frequencies(graph, found.q, q.rotation.frequencies)
            rotary = {"inv_freq": builder.parameter(name), "rotary_style": q.rotation.style}
        sizes = {"n_heads": q.count, "n_kv_heads": n_kv, "head_dim": q.head_dim, "scale": scale}
        width = tokens(q.count * q.head_dim)
        return builder.emit(Attention, found.result, operands, width, "attention", **sizes, **rotary)

    return Match(sources, build)


def _select(builder: Builder, node: Node, value: Value, label: str, columns: list[int]) -> Value:
    """The columns of a value; the value itself if that is all of them in order."""
    if columns == list(range(value.type.width)):
        return value
    runs: list[tuple[int, int]] = []
    for column in columns:
        if runs and runs[-1][1] == column:
            runs[-1] = (runs[-1][0], column + 1)
        else:
            runs.append((column, column + 1))
    return builder.emit(Select, node, (value,), tokens(len(columns)), label, columns=tuple(runs))


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
