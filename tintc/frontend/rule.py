"""The interface of a rule: it looks at one node of a graph and says what the node becomes.

Rules are tried in the order of `tintc.frontend.rules.RULES`. The first that recognises a node takes it (`Match`) or
refuses it (`Fail`); the others are not asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.ir.core import Value


@dataclass(frozen=True)
class Match:
    """A node that a rule takes.

    inputs: the nodes whose values the new op reads; the importer converts them first. build: makes the op, from the
    builder and those values, and returns the node's value.
    """

    inputs: tuple[Node, ...]
    build: Callable[[Builder, tuple[Value, ...]], Value]


@dataclass(frozen=True)
class Fail:
    """A node that a rule recognises and cannot take.

    why: a sentence for the user, without a full stop; at: the node to blame if it is not the one looked at; inputs:
    where the importer goes on looking for further problems, None for the nearest vectors behind the node; obstacle: the
    kind of layer that the node belongs to, one of `tintc.frontend.graph.obstacles`, empty if the node does not show it.
    """

    why: str
    at: Node | None = None
    inputs: tuple[Node, ...] | None = None
    obstacle: str = ""


NOT_MINE = Fail("")
"""Answer of a rule that does not recognise the node."""


class Rule(Protocol):
    """Recognise one kind of operation."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail: ...
