"""Rules applied to a graph: which rule takes which node, and the ops that their matches build.

Demand-driven from a root: only what it needs is converted. A node that is refused is recorded with its place and the
reason, and the search goes on through its inputs, so that a user sees every problem at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch.fx import Node

from tintc.errors import Reason
from tintc.frontend.builder import Builder, Placed
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.node_queries import peel, rows_width
from tintc.frontend.graph.obstacle_words import NO_RULE
from tintc.frontend.rule import NOT_MINE, Fail, Match, Rule
from tintc.ir.core import Value

NamedMatch = tuple[str, Match]
"""A match, with the name of the rule it is of."""


def match_all(
    graph: CapturedGraph, root: Node, rules: Sequence[Rule], given: Collection[Node] = ()
) -> tuple[dict[Node, NamedMatch], list[Reason]]:
    """Return the matches of every node that the root needs, inputs before users, and the reasons of those that have
    none.

    given: nodes that have a value already.
    """
    answers: dict[Node, NamedMatch | Fail] = {}
    ordered: dict[Node, NamedMatch] = {}
    reasons: list[Reason] = []
    stack = [(peel(graph, root), False)]
    while stack:
        node, inputs_done = stack.pop()
        if inputs_done:
            answer = answers[node]
            if not isinstance(answer, Fail):
                ordered[node] = answer
            continue
        if node in answers or node in given:
            continue
        answer = _match(graph, node, rules)
        answers[node] = answer
        if isinstance(answer, Fail):
            reasons.append(_reason(graph, node, answer))
            sources = answer.inputs
            if sources is None:
                sources = _vectors_behind(graph, node)
        else:
            sources = answer[1].inputs
        stack.append((node, True))
        stack.extend((peel(graph, source), False) for source in reversed(sources))
    return ordered, reasons


def build_all(
    builder: Builder, graph: CapturedGraph, matches: Mapping[Node, NamedMatch], given: Mapping[Node, Value]
) -> Placed:
    """Append the ops of the matches to the builder's program; given: values of nodes that have one already."""
    values = dict(given)
    inputs: dict[Node, tuple[Node, ...]] = {}
    for node, (rule, match) in matches.items():
        inputs[node] = tuple(peel(graph, source) for source in match.inputs)
        with builder.made_by(rule):
            values[node] = match.build(builder, tuple(values[source] for source in inputs[node]))
    return Placed(values, inputs)


def _match(graph: CapturedGraph, node: Node, rules: Sequence[Rule]) -> NamedMatch | Fail:
    """Return the answer of the first rule that recognises the node."""
    for rule in rules:
        answer = rule.match(graph, node)
        if isinstance(answer, Match):
            return type(rule).__name__, answer
        if answer is not NOT_MINE:
            return answer
    return Fail(NO_RULE)


def _vectors_behind(graph: CapturedGraph, node: Node) -> tuple[Node, ...]:
    """Return the nearest nodes behind one that hold a vector per token: where the search for problems goes on.

    What lies between belongs to the same problem.
    """
    vectors: set[Node] = set()
    seen: set[Node] = set()
    stack = graph.live_inputs(node)
    while stack:
        source = stack.pop()
        if rows_width(graph, source) is not None:
            vectors.add(source)
        elif source not in seen:
            seen.add(source)
            stack.extend(graph.live_inputs(source))
    return tuple(sorted(vectors, key=graph.order.__getitem__))


def _reason(graph: CapturedGraph, node: Node, failure: Fail) -> Reason:
    blamed = failure.at or node
    return Reason(f"aten.{opname(blamed)}", graph.where(blamed), failure.why, failure.obstacle)
