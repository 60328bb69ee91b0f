"""`run_captured`: the exported FX graph, run node by node. Independent of the IR, so that tests may compare with it.

Approximations enter as overrides of nodes: without any, the run is the model, and autograd through it is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import CHECKS, execute, opname
from tintc.reference.approximations import Lookup, Override
from tintc.reference.scores import approximate_scores


def run_captured(
    captured: CapturedGraph,
    input_ids: Tensor,
    parameters: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
    keep_casts: bool = False,
    detach_attention: bool = False,
) -> Tensor:
    """Return logits ``[B, T, V]`` of the graph for ``input_ids [B, T]``, differentiable with respect to `parameters`.

    parameters: tensors by name, tied names included, in place of the captured ones. Every float is in `dtype`;
    keep_casts leaves the graph in its own dtypes instead. detach_attention makes attention probabilities constants of
    the differentiation (paper Def. E.3), whether attention is fused or a softmax written out.
    """
    overrides: dict[Node, Override] = {}
    if detach_attention:
        overrides = approximate_scores(captured, True)
    wide: torch.dtype | None = dtype
    if keep_casts:
        wide = None
    return run_nodes(captured, input_ids, (captured.logits,), parameters, wide, overrides)[0]


def run_nodes(
    captured: CapturedGraph,
    input_ids: Tensor,
    wanted: tuple[Node, ...],
    parameters: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = torch.float64,
    overrides: Mapping[Node, Override] | None = None,
    train: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return values of the wanted nodes, as `run_captured` describes; dtype None keeps the graph's own casts.

    train ``[T]`` bool: the tokens through whose rows parameters receive gradients (None: all). The others see the same
    parameters as constants.
    """
    replaced = {captured.aliases.get(name, name): tensor for name, tensor in (parameters or {}).items()}
    overrides = overrides or {}
    order = _needed(captured, wanted, overrides)
    last_use = {source: node for node in order for source in _inputs(node, overrides)}
    values: dict[Node, Any] = {captured.input_ids: input_ids}
    for node in order:
        if node.op == "placeholder":
            if node in captured.names:
                name = captured.names[node]
                values[node] = _widened(replaced.get(name, captured.tensors[name]), dtype)
            continue
        values[node] = _value(captured, node, values, dtype, overrides, train)
        for source in _inputs(node, overrides):
            if last_use[source] is node and source not in wanted:
                values.pop(source, None)
    return tuple(values[node] for node in wanted)


def _inputs(node: Node, overrides: Mapping[Node, Override]) -> tuple[Node, ...]:
    if node in overrides:
        return overrides[node].inputs
    return tuple(node.all_input_nodes)


def _needed(captured: CapturedGraph, wanted: tuple[Node, ...], overrides: Mapping[Node, Override]) -> list[Node]:
    """Return the nodes that the wanted ones depend on, in graph order."""
    needed: set[Node] = set()
    stack = list(wanted)
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack.extend(_inputs(node, overrides))
    return sorted(
        (node for node in needed if node.op == "placeholder" or opname(node) not in CHECKS),
        key=captured.order.__getitem__,
    )


def _value(
    captured: CapturedGraph,
    node: Node,
    values: Mapping[Node, Any],
    dtype: torch.dtype | None,
    overrides: Mapping[Node, Override],
    train: Tensor | None,
) -> Any:
    def compute(lookup: Lookup) -> Any:
        if node in overrides:
            return overrides[node](lookup, dtype)
        return execute(node, lookup, dtype)

    def constant(source: Node) -> Any:
        value = values[source]
        if source not in captured.live and isinstance(value, Tensor):
            return value.detach()
        return value

    if train is None or node not in captured.live or not _differentiates(captured, node, values, overrides):
        return compute(values.__getitem__)
    return torch.where(train[:, None], compute(values.__getitem__), compute(constant))


def _differentiates(
    captured: CapturedGraph, node: Node, values: Mapping[Node, Any], overrides: Mapping[Node, Override]
) -> bool:
    """Return True if some parameter that wants a gradient enters at this node."""
    sources = (values[source] for source in _inputs(node, overrides) if source not in captured.live)
    return any(isinstance(value, Tensor) and value.requires_grad for value in sources)


def _widened(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is not None and tensor.is_floating_point():
        return tensor.to(dtype)
    return tensor
