"""`import_graph`: from the exported FX graph to the auxiliary dialect, by rules over operations.

Demand-driven from the logits: only what they need is converted. A node no rule takes is recorded with its place and the
rules' reasons, and the search goes on through its inputs, so that a user sees every problem at once.
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
from tintc.frontend.obstacles import obstacles
from tintc.frontend.rules import default_rules
from tintc.frontend.rules.base import Fail, Match, Rule
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
    """The decoder as an auxiliary program with one output, ``logits``; positions and masks are its inputs.

    Tensors the program names are in ``graph.tensors`` under each parameter's `source`. Attributes: ``width`` (D) and
    ``vocab_size`` (V). Raises `UnsupportedModelError` with all reasons and places.
    """
    return recognise(graph, rules).program


def recognise(graph: CapturedGraph, rules: Sequence[Rule] | None = None) -> Recognised:
    """As `import_graph`, with the places."""
    found = _match_all(graph, rules or default_rules())
    builder = Builder(graph)
    values: dict[Node, Value] = {}
    inputs = {node: tuple(peel(graph, source) for source in match.inputs) for node, (_, match) in found.items()}
    made_by: dict[str, str] = {}
    for node, (rule, match) in found.items():
        made = len(builder.program.ops)
        values[node] = match.build(builder, tuple(values[source] for source in inputs[node]))
        made_by |= {op.result.name: rule for op in builder.program.ops[made:]}
    program = builder.program
    program.outputs["logits"] = values[peel(graph, graph.logits)]
    program.attributes = {"width": _width(program), "vocab_size": program.outputs["logits"].type.width}
    return Recognised(program.verify(), values, inputs, made_by)


Named = tuple[str, Match]
"""A match, with the name of the rule it is of."""


def _match_all(graph: CapturedGraph, rules: Sequence[Rule]) -> dict[Node, Named]:
    """Matches of every node the logits need, inputs before users."""
    matches: dict[Node, Named | Fail] = {}
    ordered: dict[Node, Named] = {}
    reasons: list[Reason] = []
    stack = [(peel(graph, graph.logits), False)]
    while stack:
        node, inputs_done = stack.pop()
        if inputs_done:
            found = matches[node]
            if not isinstance(found, Fail):
                ordered[node] = found
            continue
        if node in matches:
            continue
        found = matches[node] = _match(graph, node, rules)
        if isinstance(found, Fail):
            reasons.append(_reason(graph, node, found))
            sources = found.inputs if found.inputs is not None else _vectors_behind(graph, node)
        else:
            sources = found[1].inputs
        stack.append((node, True))
        stack.extend((peel(graph, source), False) for source in reversed(sources))
    if reasons:
        raise UnsupportedModelError(graph.name, reasons, obstacles(graph))
    return ordered


def _match(graph: CapturedGraph, node: Node, rules: Sequence[Rule]) -> Named | Fail:
    outcomes = [(type(rule).__name__, rule.match(graph, node)) for rule in rules]
    taken = [(name, outcome) for name, outcome in outcomes if isinstance(outcome, Match)]
    if len(taken) > 1:
        names = ", ".join(name for name, _ in taken)
        raise RuntimeError(f"Rules must exclude each other, but {names} all take {node.format_node()}.")
    if taken:
        return taken[0]
    failures = [outcome for _, outcome in outcomes if isinstance(outcome, Fail) and outcome.why]
    if not failures:
        return Fail("no rule takes this operation")
    sources = [source for failure in failures for source in failure.inputs or _vectors_behind(graph, node)]
    blamed = next((failure.at for failure in failures if failure.at is not None), None)
    return Fail("; ".join(sorted({failure.why for failure in failures})), blamed, tuple(dict.fromkeys(sources)))


def _vectors_behind(graph: CapturedGraph, node: Node) -> tuple[Node, ...]:
    """The nearest nodes behind one that hold a vector per token: where the search for further problems goes on.

    What lies between belongs to the same problem.
    """
    found: dict[Node, None] = {}
    stack, seen = graph.live_inputs(node), set[Node]()
    while stack:
        source = stack.pop()
        if rows_width(graph, source) is not None:
            found[source] = None
        elif source not in seen:
            seen.add(source)
            stack.extend(graph.live_inputs(source))
    return tuple(sorted(found, key=graph.order.__getitem__))


def _reason(graph: CapturedGraph, node: Node, failure: Fail) -> Reason:
    blamed = failure.at or node
    return Reason(f"aten.{opname(blamed)}", graph.where(blamed), failure.why)


def _width(program: Program) -> int:
    """Width of the residual stream: of what the first attention's output projection makes. Of a decoder without any,
    which is refused later, that of the token embedding."""
    behind: set[Value] = set()
    for op in program.ops:
        if isinstance(op, Linear) and behind.intersection(op.operands):
            return op.result.type.width
        if isinstance(op, Attention) or behind.intersection(op.operands):
            behind.update(op.results)
    return next(op.result.type.width for op in program.ops if type(op) is Embedding)
