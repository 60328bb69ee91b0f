"""`functionalize`: a captured graph that changes tensors in place, as one that does not.

PyTorch's own way (`ExportedProgram.run_decompositions`) traces the whole graph twice more with symbolic shapes, which
takes two to five times as long as the export. Here nothing is traced: an op that writes is replaced by the one that
returns what would be written, and who reads the same memory later reads that instead. The shape of every new node is
one that is known.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.node_queries import argument

aten: Any = torch.ops.aten
MAY_SHARE = frozenset(
    {"reshape", "flatten", "contiguous", "to", "type_as", "resolve_conj", "resolve_neg", "positive"}
    | {"dropout", "alpha_dropout", "feature_dropout"}
)
"""Operations whose result is in some cases their input's memory, in others of its own."""


class NeedsRetracing(Exception):
    """The graph does not tell what is written, or who reads it: it must be traced."""


def is_inplace(node: Node) -> bool:
    """Return True if a node changes a tensor's numbers (``detach_``, which most decoders have, does not)."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and schema.name != "aten::detach_"


def functionalize(graph: Graph) -> Graph:
    """Return a graph that gives the same, under the same names. Raises `NeedsRetracing` where that takes tracing."""
    copied = Graph()
    copied.output(copied.graph_copy(graph, {}))
    _Rewriting(copied).run()
    return copied


class _Rewriting:
    """One pass over the nodes in order.

    source: the node that a view is a view of; changes: how often the memory that a node begins has been written;
    current: the node that holds a node's value now, and after how many changes it did; perhaps: memories that may be
    the same; views: of each memory, the nodes that show it.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.order = {node: index for index, node in enumerate(graph.nodes)}
        self.readers = {node: tuple(node.users) for node in graph.nodes}
        self.source: dict[Node, Node] = {}
        self.changes: dict[Node, int] = {}
        self.current: dict[Node, tuple[Node, int]] = {}
        self.perhaps: dict[Node, set[Node]] = {}
        self.views: dict[Node, list[Node]] = {}

    def run(self) -> None:
        written = [node for node in self.order if self._step(node)]
        for node in reversed(written):
            self.graph.erase_node(node)

    def _step(self, node: Node) -> bool:
        """Rewrite one node; return True if nothing reads it any more, because it writes."""
        target = argument(node, 0, None)
        if not isinstance(target, Node):
            target = None
        changes = node.op == "call_function" and is_inplace(node)
        with self.graph.inserting_before(node):
            for read in node.all_input_nodes:
                if (now := self._now(read)) is not read:
                    node.replace_input_with(read, now)
            if changes:
                self._write(node, target)
        shows = changes or (target is not None and _is_view(node))
        if shows and target is not None:
            self.source[node] = target
        memory = self._memory(node)
        self.views.setdefault(memory, []).append(node)
        if shows and not changes:
            self.current[node] = node, self.changes.get(memory, 0)
        elif target is not None and opname(node) in MAY_SHARE:
            other = self._memory(target)
            self.perhaps.setdefault(memory, set()).add(other)
            self.perhaps.setdefault(other, set()).add(memory)
        return changes

    def _write(self, node: Node, target: Node | None) -> None:
        """Add the nodes of what the node writes, and from it of what that is a part of."""
        if target is None or not _writes_its_first_input_alone(node):
            raise NeedsRetracing(node.format_node())
        functional = getattr(getattr(aten, opname(node).removesuffix("_"), None), node.target._overloadname, None)  # pyright: ignore
        if functional is None or not opname(node).endswith("_"):
            raise NeedsRetracing(node.format_node())
        memory = self._memory(target)
        self._expect_no_reader_of_others(memory, node)
        chain = [target]
        whole = [self._now(target)]
        while chain[-1] in self.source:
            chain.append(self.source[chain[-1]])
            whole.append(self._now(chain[-1]))
        count = self.changes.get(memory, 0) + 1
        self.changes[memory] = count
        value = self._new(functional, node.args, node.kwargs, target, node)
        self.current[target] = value, count
        for part, of, before in zip(chain, chain[1:], whole[1:], strict=False):
            value = self._put_back(part, of, before, value, node)
            self.current[of] = value, count

    def _expect_no_reader_of_others(self, memory: Node, node: Node) -> None:
        """Raise `NeedsRetracing` if a memory that may be the same as this one is read after the node."""
        group = {memory}
        stack = [memory]
        while stack:
            more = self.perhaps.get(stack.pop(), set()) - group
            group |= more
            stack += more
        for view in (view for other in group - {memory} for view in self.views[other]):
            if any(self.order[reader] > self.order[node] for reader in self.readers[view]):
                raise NeedsRetracing(node.format_node())

    def _memory(self, node: Node) -> Node:
        while node in self.source:
            node = self.source[node]
        return node

    def _now(self, node: Node) -> Node:
        """Return the node that holds what this one would hold now."""
        count = self.changes.get(self._memory(node), 0)
        holder, holder_count = self.current.get(node, (node, 0))
        if holder_count == count:
            return holder
        now = self._now(self.source[node])
        if not is_inplace(node) and opname(node) != "detach_":
            now = self._new(node.target, (now, *node.args[1:]), node.kwargs, node, node)
        self.current[node] = now, count
        return now

    def _put_back(self, part: Node, of: Node, before: Node, value: Node, node: Node) -> Node:
        """Return all of `of` after its part has become `value`; before: what it was."""
        name = opname(part)
        rest = part.args[1:]
        if is_inplace(part) or name in ("detach", "detach_", "alias"):
            return value
        if name in ("select", "slice") and not part.kwargs:
            functional = aten.select_scatter.default if name == "select" else aten.slice_scatter.default
            return self._new(functional, (before, value, *rest), {}, of, node)
        if name == "unsqueeze":
            return self._new(aten.squeeze.dim, (value, *rest), {}, of, node)
        if name == "transpose":
            return self._new(aten.transpose.int, (value, *rest), {}, of, node)
        raise NeedsRetracing(node.format_node())

    def _new(self, target: Any, args: Any, kwargs: Any, like: Node, at: Node) -> Node:
        """Add a call in the place of `at`, whose result is of the shape and type of `like`."""
        call = self.graph.call_function(target, args, dict(kwargs))
        call.meta = at.meta | {"val": like.meta["val"]}
        return call


def _is_view(node: Node) -> bool:
    """Return True if the node shows its first input's memory; of a list, the parts do if the list does."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], Node) and _is_view(node.args[0])
    schema = getattr(node.target, "_schema", None)
    if schema is None or opname(node) in MAY_SHARE:
        return False
    return any(returned.alias_info is not None for returned in schema.returns)


def _writes_its_first_input_alone(node: Node) -> bool:
    schema = node.target._schema  # pyright: ignore[reportAttributeAccessIssue]
    written = [place for place, entry in enumerate(schema.arguments) if entry.alias_info and entry.alias_info.is_write]
    return written == [0]
