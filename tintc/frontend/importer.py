"""`import_graph`: from the exported FX graph to the auxiliary dialect, by rules over operations.

Demand-driven from the logits: only what they need is converted. A node that is refused is recorded with its place and
the reason, and the search goes on through its inputs, so that a user sees every problem at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

from tintc.errors import Reason, UnsupportedModelError
from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.node_queries import peel, rows_width
from tintc.frontend.graph.obstacles import obstacles
from tintc.frontend.rule import NOT_MINE, Fail, Match, Rule
from tintc.frontend.rules import default_rules
from tintc.ir.auxiliary import Attention, Embedding, Linear
from tintc.ir.core import Program, Value


@dataclass(frozen=True)
class Recognised:
    """An imported graph, and where its ops lie in it.

    values: the program's value at every node that a rule took; inputs: the nodes whose values that op reads; rules: for
    every value of the program, by its name, the rule that made it.
    """

    program: Program
    values: dict[Node, Value]
    inputs: dict[Node, tuple[Node, ...]]
    rules: dict[str, str]


def import_graph(graph: CapturedGraph, rules: Sequence[Rule] | None = None) -> Program:
    """Return the decoder as an auxiliary program with one output, ``logits``; positions and masks are its inputs.

    Tensors the program names are in ``graph.tensors`` under each parameter's `source`. Attributes: ``width`` (D) and
    ``vocab_size`` (V). Raises `UnsupportedModelError` with all reasons and places.
    """
    return recognise(graph, rules).program


def recognise(graph: CapturedGraph, rules: Sequence[Rule] | None = None) -> Recognised:
    """Return what `import_graph` does, with the places."""
    matches = _match_all(graph, rules or default_rules())
    builder = Builder(graph)
    values: dict[Node, Value] = {}
    inputs: dict[Node, tuple[Node, ...]] = {}
    made_by: dict[str, str] = {}
    for node, (rule, match) in matches.items():
        inputs[node] = tuple(peel(graph, source) for source in match.inputs)
        before = len(builder.program.ops)
        values[node] = match.build(builder, tuple(values[source] for source in inputs[node]))
        made_by |= {op.result.name: rule for op in builder.program.ops[before:]}
    program = builder.program
    logits = values[peel(graph, graph.logits)]
    program.outputs["logits"] = logits
    program.attributes = {"width": _width(program), "vocab_size": logits.type.width}
    return Recognised(program.verify(), values, inputs, made_by)


NamedMatch = tuple[str, Match]
"""A match, with the name of the rule it is of."""


def _match_all(graph: CapturedGraph, rules: Sequence[Rule]) -> dict[Node, NamedMatch]:
    """Return the matches of every node the logits need, inputs before users."""
    answers: dict[Node, NamedMatch | Fail] = {}
    ordered: dict[Node, NamedMatch] = {}
    reasons: list[Reason] = []
    stack = [(peel(graph, graph.logits), False)]
    while stack:
        node, inputs_done = stack.pop()
        if inputs_done:
            answer = answers[node]
            if not isinstance(answer, Fail):
                ordered[node] = answer
            continue
        if node in answers:
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
    if reasons:
        raise UnsupportedModelError(graph.name, reasons, obstacles(graph))
    return ordered


def _match(graph: CapturedGraph, node: Node, rules: Sequence[Rule]) -> NamedMatch | Fail:
    """Return the answer of the first rule that recognises the node."""
    for rule in rules:
        answer = rule.match(graph, node)
        if isinstance(answer, Match):
            return type(rule).__name__, answer
        if answer is not NOT_MINE:
            return answer
    return Fail("no rule takes this operation")


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
    return Reason(f"aten.{opname(blamed)}", graph.where(blamed), failure.why)


def _width(program: Program) -> int:
    """Return the width of the residual stream: of what the first attention's output projection makes.

    Of a decoder without any attention, which is refused later, it is the width of the token embedding.
    """
    behind: set[Value] = set()
    for op in program.ops:
        if isinstance(op, Linear) and behind.intersection(op.operands):
            return op.result.type.width
        if isinstance(op, Attention) or behind.intersection(op.operands):
            behind.update(op.results)
    return next(op.result.type.width for op in program.ops if type(op) is Embedding)
