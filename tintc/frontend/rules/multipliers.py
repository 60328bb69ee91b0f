"""Runs of columns that are multiplied by one number each."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.layouts import vector_layout
from tintc.frontend.graph.node_queries import constant_value, scalar
from tintc.frontend.rule import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Scale
from tintc.ir.core import Value, tokens

MOST = 16
"""Runs of columns that a vector may have."""


class MultipliersRule:
    """``x * c`` with a vector c that no parameter makes and that is one number for each of a few runs of columns ->
    `aux.scale` of each, put together again."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        layout = vector_layout(graph, node)
        if opname(node) != "mul" or layout is None or not layout.is_rows or node not in graph.live:
            return NOT_MINE
        x, constant = node.args[:2]
        if x not in graph.live:
            x, constant = constant, x
        if not isinstance(x, Node) or not isinstance(constant, Node) or vector_layout(graph, x) != layout:
            return NOT_MINE
        if constant in graph.live or constant in graph.weighted or scalar(graph, constant) is not None:
            return NOT_MINE
        runs = _runs(constant_value(graph, constant), layout.width)
        if runs is None:
            return NOT_MINE

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            parts: list[Value] = []
            start = 0
            for width, factor in runs:
                part = builder.select(node, values[0], range(start, start + width), "part")
                parts.append(builder.emit(Scale, node, (part,), tokens(width), "scale", factor=factor))
                start += width
            return builder.concatenate(node, tuple(parts), "together")

        return Match((x,), build)


def _runs(vector: Tensor | None, width: int) -> list[tuple[int, float]] | None:
    """Return width and number of every run of equal numbers; None if there are many, or a zero, or no such vector."""
    if vector is None or vector.numel() != width or vector.shape[-1] != width or not torch.is_floating_point(vector):
        return None
    runs = [(len(list(same)), number) for number, same in groupby(vector.flatten().tolist())]
    if len(runs) > MOST or any(number == 0 for _, number in runs):
        return None
    return runs
