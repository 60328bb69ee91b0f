"""Parts of a fused projection: slices of the last dimension."""

from __future__ import annotations

from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.node_queries import rows_width
from tintc.frontend.rules.base import NOT_MINE, Fail, Match
from tintc.ir.auxiliary import Select
from tintc.ir.core import Value, tokens

SPLITS = frozenset({"split", "split_with_sizes", "chunk"})


class SelectRule:
    """``slice`` of the last dimension, and one result of ``split`` or ``chunk`` along it -> `aux.select`."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        if opname(node) == "slice":
            source, start = node.args[0], node.args[2] if len(node.args) > 2 else 0
            if len(node.args) > 4 and node.args[4] != 1:
                return Fail("a slice with a step is not supported")
            dim = node.args[1] if len(node.args) > 1 else 0
        elif opname(node) == "getitem" and isinstance(node.args[0], Node) and opname(node.args[0]) in SPLITS:
            split = node.args[0]
            source, dim = split.args[0], split.args[2] if len(split.args) > 2 else 0
            start = _start(split, node)
        else:
            return NOT_MINE
        assert isinstance(source, Node)
        width, part = rows_width(graph, source), rows_width(graph, node)
        if width is None or part is None or dim not in (-1, len(source.meta["val"].shape) - 1):
            return Fail("only the last dimension of one vector per token can be cut into parts")
        first = 0 if start is None else int(start)  # pyright: ignore[reportArgumentType]
        first = first + width if first < 0 else first

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            return builder.emit(Select, node, values, tokens(part), "part", columns=((first, first + part),))

        return Match((source,), build)


def _start(split: Node, node: Node) -> int:
    """Where one result of a split begins: the widths of those before it."""
    values, index = split.meta["val"], node.args[1]
    assert isinstance(index, int)
    return sum(value.shape[-1] for value in values[:index])
