"""Attention sinks: a logit of each head beside its scores, whose probability is dropped.

Two spellings of one thing: a softmax over scores and sink, ``exp(s_j) / (sum_i exp(s_i) + exp(sink))``, is the softmax
over the scores times ``sigmoid(logsumexp(s) - sink)``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.node_queries import PROBES, constant_name, constant_value, single_sources, sizes
from tintc.frontend.graph.regions import between, push

TOLERANCE = 1e-9


def sinks_beside(graph: CapturedGraph, joined: Node, softmax: Node, used: Node) -> tuple[Node, str] | None:
    """Return the scores, and the name of the sinks ``[H]``, of a softmax over ``joined = cat(scores, sinks)``.

    used: what is made of the softmax; the sinks' column, and no other, must be dropped on the way there. None if
    `joined` is anything else.
    """
    if opname(joined) != "cat" or joined.args[1:] not in ((-1,), (3,)):
        return None
    tensors = joined.args[0]
    if not isinstance(tensors, list | tuple) or len(tensors) != 2:
        return None
    scores_first = tensors[0] in graph.live
    scores, sinks = tensors if scores_first else reversed(tensors)
    if not isinstance(scores, Node) or not isinstance(sinks, Node) or sinks in graph.live or scores not in graph.live:
        return None
    batch, length = PROBES[0]
    columns = graph.shape(sinks, batch, length)
    shape = graph.shape(softmax, batch, length)
    if columns is None or columns[-1] != 1 or shape is None or shape[-1] != length + 1:
        return None
    numbers = torch.arange(float(torch.Size(shape).numel()), dtype=torch.float64).view(shape)
    kept = push(graph, used, {softmax: numbers.to(graph.input_ids.meta["val"].device)}, batch, length).cpu()
    of_scores = numbers[..., :-1] if scores_first else numbers[..., 1:]
    if not torch.equal(kept, of_scores):
        return None
    heads = _one_for_each_head(graph, sinks)
    if heads is None:
        return None
    return scores, constant_name(graph, sinks, "sinks", heads)


def _one_for_each_head(graph: CapturedGraph, node: Node) -> Tensor | None:
    """Return the numbers ``[H]`` of a node ``[B, H, T, 1]``; None if they depend on the example or position."""
    values = [graph.evaluate(node, *size) for size in sizes(graph)]
    heads = values[0][0, :, 0, 0]
    if all(torch.equal(value, heads[:, None, None].expand_as(value)) for value in values):
        return heads
    return None


def sinks_of_gate(graph: CapturedGraph, gate: Node, scores: Node) -> str | None:
    """Return the name of the sinks ``[H]`` if the gate is ``sigmoid(logsumexp(scores) - sinks)``, in any spelling.

    It is evaluated for random scores, and compared with every constant in it that has one number for each head; all
    constants in it must be the same in every text.
    """
    if scores not in single_sources(graph, gate, lambda node: node is not scores and node.op == "call_function"):
        return None
    batch = 2
    length = 3
    shape = graph.shape(scores, batch, length)
    if shape is None or len(shape) != 4:
        return None
    random = 4 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    random = random.to(graph.input_ids.meta["val"].device)
    value = push(graph, gate, {scores: random}, batch, length)
    for source, sinks in (_constants(graph, gate, scores) or {}).items():
        if sinks.numel() != shape[1]:
            continue
        expected = torch.sigmoid(random.logsumexp(-1, keepdim=True) - sinks.reshape(-1, 1, 1))
        if value.shape == expected.shape and torch.allclose(value, expected, rtol=TOLERANCE, atol=0.0):
            return constant_name(graph, source, "sinks", sinks.reshape(-1))
    return None


def _constants(graph: CapturedGraph, gate: Node, scores: Node) -> dict[Node, Tensor] | None:
    """Return the constants that join between the scores and the gate; None if one differs from text to text."""
    constants: dict[Node, Tensor] = {}
    for node in between(graph, gate, (scores,)):
        for source in node.all_input_nodes:
            if source in graph.live or not isinstance(source.meta.get("val"), Tensor):
                continue
            value = constant_value(graph, source)
            if value is None:
                return None
            constants[source] = value
    return constants
