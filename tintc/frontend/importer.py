"""`import_graph`: from the exported FX graph to the auxiliary dialect, by rules over operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

from tintc.errors import UnsupportedModelError
from tintc.frontend.builder import Builder, Placed
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.node_queries import peel
from tintc.frontend.graph.obstacles import obstacles
from tintc.frontend.matching import build_all, match_all
from tintc.frontend.rule import Rule
from tintc.frontend.rules import default_rules
from tintc.ir.auxiliary import Attention, Embedding, Linear, Recurrence
from tintc.ir.core import Program, Value


@dataclass(frozen=True)
class Recognised:
    """An imported graph, and where its ops lie in it.

    values: the program's value at every node that a rule took; inputs: the nodes whose values that op reads; rules: for
    every value of the program, by its name, the rule that made it; inner: of nodes of experts, where ops lie in the
    graph of their gate.
    """

    program: Program
    values: dict[Node, Value]
    inputs: dict[Node, tuple[Node, ...]]
    rules: dict[str, str]
    inner: dict[Node, Placed]


def import_graph(graph: CapturedGraph, rules: Sequence[Rule] | None = None) -> Program:
    """Return the decoder as an auxiliary program with one output, ``logits``; positions and masks are its inputs.

    Tensors the program names are in ``graph.tensors`` under each parameter's `source`. Attributes: ``width`` (D) and
    ``vocab_size`` (V). Raises `UnsupportedModelError` with all reasons and places.
    """
    return recognise(graph, rules).program


def recognise(graph: CapturedGraph, rules: Sequence[Rule] | None = None) -> Recognised:
    """Return what `import_graph` does, with the places."""
    matches, reasons = match_all(graph, graph.logits, rules or default_rules())
    if reasons:
        raise UnsupportedModelError(graph.name, reasons, obstacles(graph, reasons))
    builder = Builder(graph)
    placed = build_all(builder, graph, matches, {})
    program = builder.program
    logits = placed.values[peel(graph, graph.logits)]
    program.outputs["logits"] = logits
    program.attributes = {"width": _width(program), "vocab_size": logits.type.width}
    return Recognised(program.verify(), placed.values, placed.inputs, builder.rules, builder.inner)


def _width(program: Program) -> int:
    """Return the width of the residual stream: of what the first attention's or recurrence's output projection makes.

    Of a decoder without either it is the width of the token embedding.
    """
    behind: set[Value] = set()
    for op in program.ops:
        if isinstance(op, Linear) and behind.intersection(op.operands):
            return op.result.type.width
        if isinstance(op, Attention | Recurrence) or behind.intersection(op.operands):
            behind.update(op.results)
    return next(op.result.type.width for op in program.ops if type(op) is Embedding)
