"""What a rule is: it looks at one node and says what it becomes, or why it is not its business.

Rules are tried in no particular order; at most one may match a node. `Match.inputs` are the nodes whose values the new
op takes (the importer converts them first), `Match.build` makes the op from those values. A rule for which the node is
plainly none of its kind returns `NOT_MINE`; one that recognises its kind and cannot take it returns a `Fail` whose
sentence the user will read.
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
    """inputs: nodes to convert first; build: called with the builder and their values, gives the node's value."""

    inputs: tuple[Node, ...]
    build: Callable[[Builder, tuple[Value, ...]], Value]


@dataclass(frozen=True)
class Fail:
    """why: a sentence without a full stop; at: the node to blame if it is not the one looked at.

    inputs: where the importer goes on looking for further problems; None: at the nearest vectors behind the node.
    """

    why: str
    at: Node | None = None
    inputs: tuple[Node, ...] | None = None


NOT_MINE = Fail("")


class Rule(Protocol):
    """A named rule; see the module's docstring."""

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail: ...
