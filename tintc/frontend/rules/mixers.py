"""Recurrences and short convolutions, and functions of single numbers that gates go through, as ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import CHECKS, opname
from tintc.frontend.graph.layouts import vector_layout
from tintc.frontend.graph.node_queries import constant_value, constant_vector
from tintc.frontend.graph.regions import moves
from tintc.frontend.mixers.ops import convolution_of_tokens, recurrence_of_tokens, writes_of
from tintc.frontend.mixers.pointwise import Function, crosses, find_pointwise
from tintc.frontend.rule import NOT_MINE, Fail, Match
from tintc.frontend.rules.arithmetic import constant_row
from tintc.ir.auxiliary import Constant, Convolution, Pointwise, Recurrence
from tintc.ir.core import Value, tokens

STRENGTHS = frozenset({3, 4})
"""Operands of a recurrence that are log decays and strengths."""


class RecurrenceRule:
    """A node of `recurrence_of_tokens` -> `aux.recurrence`."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if node.target is not recurrence_of_tokens:
            return NOT_MINE
        operands = tuple(value for value in node.args[:5] if isinstance(value, Node))
        skip, scale, delta, unit_eps = node.args[5:]
        skip_name = ""
        if skip is not None:
            skip_name = constant_vector(graph, skip)
        layouts = [vector_layout(graph, operand) for operand in operands]
        q, _, v, g, _ = layouts
        live = tuple(operand for operand in operands if operand in graph.live)
        tables = _tables(graph, operands)
        if q is None or v is None or g is None or None in layouts or tables is None:
            return Fail("what a recurrence reads is not one vector for every token", inputs=live)
        if skip_name is None or (skip_name and graph.tensors[skip_name].shape != v.sizes[:1]):
            return Fail("a recurrence's skip is not a parameter with one number for each head", inputs=live)
        options = {
            "n_heads": v.sizes[0],
            "n_key_heads": q.sizes[0],
            "key_dim": q.sizes[1],
            "value_dim": v.sizes[-1],
            "scale": scale,
            "delta": delta,
            "by_coordinate": len(g.sizes) > 1,
            "unit_eps": unit_eps,
            "writes": writes_of(v.sizes),
        }

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            name = skip_name and builder.parameter(skip_name)
            given = iter(values)
            read: list[Value] = []
            for operand in operands:
                if operand in tables:
                    kind = tokens(graph.tensors[tables[operand]].shape[1])
                    table = builder.parameter(tables[operand])
                    read.append(builder.emit(Constant, node, (), kind, "constant", table=table))
                else:
                    read.append(next(given))
            return builder.emit(
                Recurrence, node, tuple(read), tokens(v.sizes[0] * v.sizes[-1]), "mixed", skip=name, **options
            )

        return Match(live, build)


class ConvolutionRule:
    """A node of `convolution_of_tokens` -> `aux.convolution`."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if node.target is not convolution_of_tokens:
            return NOT_MINE
        x, weight, bias = node.args
        assert isinstance(x, Node)
        layout = vector_layout(graph, x)
        weight_name = _constant(graph, weight)
        bias_name = ""
        if bias is not None:
            bias_name = _constant(graph, bias)
        if layout is None or x not in graph.live:
            return Fail("what a convolution reads is not one vector for every token")
        if weight_name is None or bias_name is None:
            return Fail("the weight or bias of a convolution is not the same in every text", inputs=(x,))

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            bias_alias = bias_name and builder.parameter(bias_name)
            kind = tokens(layout.width)
            return builder.emit(
                Convolution, node, values, kind, "convolved", weight=builder.parameter(weight_name), bias=bias_alias
            )

        return Match((x,), build)


class PointwiseRule:
    """A function of single numbers from which only decays and strengths of recurrences are made -> `aux.pointwise`,
    after an `aux.select` where it takes columns more than once."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if node not in graph.live or moves(node) or not crosses(graph, node) or not _only_strengths(graph, node):
            return NOT_MINE
        found = find_pointwise(graph, node)
        if found is None:
            why = "decays and strengths of a recurrence are made by a function that tintc does not know"
            return Fail(why)

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            source = builder.select(node, values[0], found.columns, "columns")
            return _emit(builder, node, source, found)

        return Match((found.source,), build)


def _tables(graph: CapturedGraph, operands: tuple[Node, ...]) -> dict[Node, str] | None:
    """Return the names of tables ``[1, W]`` of those that do not depend on the tokens; None if one differs from token
    to token."""
    tables: dict[Node, str] = {}
    for operand in operands:
        layout = vector_layout(graph, operand)
        if operand in graph.live or layout is None:
            continue
        row = constant_row(graph, operand, operand, layout)
        if row is None:
            return None
        tables[operand] = graph.derive_constant("vector", row[None])
    return tables


def _constant(graph: CapturedGraph, value: Any) -> str | None:
    """Return the name of a tensor that is the value in every text, a parameter or what is computed; None if it
    differs."""
    name = constant_vector(graph, value)
    if name is not None or not isinstance(value, Node) or value in graph.live:
        return name
    tensor = constant_value(graph, value)
    if tensor is None:
        return None
    return graph.derive_constant("weight", tensor)


def _emit(builder: Builder, node: Node, source: Value, found: Function) -> Value:
    vectors = {key: builder.parameter(name) for key, name in found.vectors.items()}
    return builder.emit(Pointwise, node, (source,), source.type, found.fn, fn=found.fn, **vectors, **found.limits)


def _only_strengths(graph: CapturedGraph, node: Node) -> bool:
    """Return True if a value reaches decays and strengths of recurrences, through functions of single numbers and
    convolutions, and nothing else."""
    ends = _ends(graph, node)
    return bool(ends) and all(ends)


def _ends(graph: CapturedGraph, node: Node) -> list[bool]:
    """Return of everything that a value reaches whether it is a decay or strength of a recurrence."""

    def passes(user: Node) -> bool:
        return crosses(graph, user) or moves(user) or user.target is convolution_of_tokens

    return reached(graph, node, STRENGTHS, passes)


def reached(graph: CapturedGraph, node: Node, operands: frozenset[int], passes: Callable[[Node], bool]) -> list[bool]:
    """Return of everything that a value reaches, through nodes that `passes` allows, whether it is one of those
    operands of a recurrence."""
    ends: list[bool] = []
    for user in node.users:
        if opname(user) in CHECKS or user not in graph.live:
            continue
        if user.target is recurrence_of_tokens:
            ends.append(operands.issuperset(at for at, operand in enumerate(user.args) if operand is node))
        elif passes(user):
            ends += reached(graph, user, operands, passes)
        else:
            ends.append(False)
    return ends
