"""`CapturedGraph`: an exported decoder, and the values of its nodes that do not depend on the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.graph.evaluation import CHECKS, execute, opname, widened

SHAPE_OPS = frozenset(
    {"sym_size", "sym_numel", "sym_stride", "ones_like", "zeros_like", "full_like", "empty_like"}
    | {"new_ones", "new_zeros", "new_full", "new_empty"}
)
"""Operations that read their first input's shape and not its data."""
LIKE_OPS = frozenset({"expand_as", "view_as", "reshape_as", "type_as"})
"""Operations that read the first input's data and of the second its shape or type."""


def data_inputs(node: Node) -> list[Node]:
    """Return the inputs whose data the node reads."""
    return node.all_input_nodes[:1] if opname(node) in LIKE_OPS else node.all_input_nodes


@dataclass(eq=False)
class CapturedGraph:
    """The graph of ``model(input_ids [B, T]) -> logits [B, T, V]``, batch and length symbolic.

    name: what messages call the model; tensors: every parameter and buffer under its canonical name, and constants the
    importer derives (``constant.*``); names: placeholder -> canonical name; aliases: every name of a tied tensor ->
    the canonical one, which is the first that the model lists; max_length: the longest sequence the result must serve;
    origins: constants computed from one parameter -> its name; adapters: the parameters that are adapters' own; ones:
    nodes -> whether they are ones in every text, of those that were asked for.
    """

    name: str
    module: torch.fx.GraphModule
    input_ids: Node
    logits: Node
    tensors: dict[str, Tensor]
    names: dict[Node, str]
    aliases: dict[str, str]
    parameter_names: frozenset[str]
    max_length: int
    origins: dict[str, str] = field(default_factory=dict)
    adapters: frozenset[str] = frozenset()
    ones: dict[Node, bool] = field(default_factory=dict)
    _derived: dict[str, int] = field(default_factory=dict)
    _sizes: dict[tuple[Any, int, int], int | None] = field(default_factory=dict)

    @cached_property
    def order(self) -> dict[Node, int]:
        """Return the position of every node in the graph, which is in topological order."""
        return {node: index for index, node in enumerate(self.module.graph.nodes)}

    @cached_property
    def live(self) -> frozenset[Node]:
        """Return the nodes whose value depends on what the tokens are, and rows looked up in a parameter.

        Everything else depends on the batch size and the length alone, and can be evaluated.
        """
        live = {self.input_ids}
        for node in self.module.graph.nodes:
            if node.op != "call_function" or opname(node) in CHECKS or opname(node) in SHAPE_OPS:
                continue
            if any(source in live for source in data_inputs(node)) or self._looks_up_parameter(node):
                live.add(node)
        return frozenset(live)

    def _looks_up_parameter(self, node: Node) -> bool:
        return opname(node) == "embedding" and self.names.get(node.all_input_nodes[0]) in self.parameter_names

    @cached_property
    def weighted(self) -> frozenset[Node]:
        """Return the nodes that are not live and hold a parameter, or numbers made of one."""
        weighted: set[Node] = set()
        for node in self.module.graph.nodes:
            if self.names.get(node) in self.parameter_names or not weighted.isdisjoint(node.all_input_nodes):
                weighted.add(node)
        return frozenset(weighted - self.live)

    def live_inputs(self, node: Node) -> list[Node]:
        return [source for source in data_inputs(node) if source in self.live]

    def tensor_name(self, node: Any) -> str | None:
        """Return the canonical name of the parameter or buffer a node is; None for any other node or argument."""
        if not isinstance(node, Node):
            return None
        return self.names.get(node)

    def shape(self, node: Node, batch: int, length: int) -> tuple[int, ...] | None:
        """Return the node's shape for that batch size and length; None if it is not a tensor or depends on the ids."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return None
        shape: list[int] = []
        for dim in value.shape:
            size = dim if isinstance(dim, int) else self._size(dim.node.expr, batch, length)
            if size is None:
                return None
            shape.append(size)
        return tuple(shape)

    def _size(self, expression: Any, batch: int, length: int) -> int | None:
        """Return a size that depends on the batch size and the length; None if it depends on more. Rules ask for few of
        them, thousands of times."""
        key = (expression, batch, length)
        if key not in self._sizes:
            ids = self.input_ids.meta["val"].shape[:2]
            sizes = {dim.node.expr: size for dim, size in zip(ids, (batch, length), strict=True)}
            value = expression.subs(sizes)
            self._sizes[key] = None
            if value.is_number:
                self._sizes[key] = int(value)
        return self._sizes[key]

    def evaluate(self, node: Node, batch: int, length: int) -> Any:
        """Return the value of a node that is not live, in fp64 with the graph's down-casts dropped."""
        return self.evaluator(batch, length)(node)

    def evaluator(self, batch: int, length: int) -> Callable[[Node], Any]:
        """Return `evaluate` at one size, as a function that computes each node once."""
        memory: dict[Node, Any] = {}

        def value(node: Node) -> Any:
            if node not in memory:
                memory[node] = self._compute(node, batch, length, value)
            return memory[node]

        return value

    def _compute(self, node: Node, batch: int, length: int, value: Callable[[Node], Any]) -> Any:
        name = self.names.get(node)
        if name is not None:
            return widened(self.tensors[name], torch.float64)
        if opname(node) in SHAPE_OPS or (opname(node) in LIKE_OPS and node not in self.live):

            def shaped(source: Node) -> Any:
                if source in self.live:
                    return self.stand_in(source, batch, length)
                return value(source)

            return execute(node, shaped, torch.float64)
        if node in self.live or node.op != "call_function":
            raise ValueError(f"{node.name} depends on the tokens and cannot be evaluated from their shape.")
        return execute(node, value, torch.float64)

    def stand_in(self, node: Node, batch: int, length: int) -> Tensor:
        """Return zeros in place of a live node of which only the shape is read."""
        shape = self.shape(node, batch, length)
        assert shape is not None
        return torch.zeros((), dtype=node.meta["val"].dtype, device=node.meta["val"].device).expand(shape)

    def where(self, node: Node) -> str:
        """Return the module path the node came from, or the model's class at the top level."""
        path, class_name = self._module(node)
        return path or class_name

    def path(self, node: Node) -> str:
        """Return the module path the node came from, empty at the top level."""
        return self._module(node)[0]

    def _module(self, node: Node) -> tuple[str, str]:
        entries = [entry for entry in (node.meta.get("nn_module_stack") or {}).values() if "_empty_nn" not in entry[0]]
        if not entries:
            return "", self.name
        path, kind = entries[-1]
        qualified = getattr(kind, "__name__", kind)
        return path, qualified.split(".")[-1]

    def derive_from(self, origin: str, tensor: Tensor) -> str:
        """Keep a tensor computed from the parameter `origin` alone, and return its name, ``constant.<origin>``.

        A second, different one of the same origin gets a number.
        """
        name = f"constant.{origin}"
        number = 1
        while name in self.tensors and not torch.equal(self.tensors[name], tensor):
            number += 1
            name = f"constant.{origin}.{number}"
        self.tensors[name] = tensor
        self.origins[name] = origin
        return name

    def derive_constant(self, stem: str, tensor: Tensor) -> str:
        """Keep a tensor the importer worked out, and return its name, ``constant.<stem>.N``; equal ones share it."""
        for name, known in self.tensors.items():
            if name.startswith(f"constant.{stem}.") and known.shape == tensor.shape and torch.equal(known, tensor):
                return name
        number = self._derived.get(stem, 0)
        self._derived[stem] = number + 1
        name = f"constant.{stem}.{number}"
        self.tensors[name] = tensor
        return name
