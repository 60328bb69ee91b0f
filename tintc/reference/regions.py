"""Finite differences inside an FX graph: norms and activations as `torch.autograd.Function`s over regions of nodes.

The importer says where a norm or an activation begins and ends, and which of its inputs are gain and bias. What lies
between is run as the graph has it, whatever operations spell it: once for the value, and twice more, at x and beside x,
for the derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import execute
from tintc.frontend.graph.node_queries import constant_vector
from tintc.frontend.graph.regions import between
from tintc.frontend.importer import Recognised
from tintc.ir.auxiliary import Activation, Norm
from tintc.reference.approximations import Difference
from tintc.reference.captured import Lookup


class Region:
    """The function of one vector per token that lies between two nodes, with its derivative by finite differences.

    A norm's gain and bias stay outside of the difference, as in Def. F.3: the region runs with gain 1 and bias 0, and
    both are applied to its result, where autograd differentiates them exactly.
    """

    def __init__(
        self,
        graph: CapturedGraph,
        root: Node,
        source: Node,
        difference: Difference,
        gain: str | None,
        bias: str | None,
    ):
        self.root, self.source, self.difference = root, source, difference
        self.nodes = between(graph, root, (source,))
        outside = [value for node in self.nodes for value in node.all_input_nodes if value not in {source, *self.nodes}]
        self.inputs = (source, *dict.fromkeys(outside))
        self.is_norm = gain is not None
        self.gains = [node for node in outside if gain and constant_vector(graph, node) == gain]
        self.biases = [node for node in outside if bias and constant_vector(graph, node) == bias]

    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Tensor:
        outside = {node: lookup(node) for node in self.inputs}  # the run lets go of them before the derivative is due
        plain = outside | {node: torch.ones_like(outside[node]) for node in self.gains}
        plain |= {node: torch.zeros_like(outside[node]) for node in self.biases}

        def f(x: Tensor) -> Tensor:
            values: dict[Node, Any] = {**plain, self.source: x}
            for node in self.nodes:
                values[node] = execute(node, values.__getitem__, dtype)
            return values[self.root]

        y: Any = _FirstOrder.apply(outside[self.source], f, self.difference, self.is_norm)
        if self.gains:
            y = y * outside[self.gains[0]]
        if self.biases:
            y = y + outside[self.biases[0]]
        return y


class _FirstOrder(torch.autograd.Function):
    """f forward; backward the difference along the gradient, because the Jacobians of norms and activations are
    symmetric."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Callable[[Tensor], Tensor], difference: Difference, is_norm: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.f = f
        ctx.difference = difference
        ctx.is_norm = is_norm
        return f(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        (g,) = gradients
        pulled = ctx.difference.along(lambda z: ctx.f(z).reshape(x.shape), x, g.reshape(x.shape), ctx.is_norm)
        return pulled, None, None, None


def difference_regions(
    graph: CapturedGraph, recognised: Recognised, norms: Difference | None, activations: Difference | None
) -> dict[Node, Region]:
    """Return overrides for the norms and activations of a recognised graph; None leaves a kind to autograd."""
    producers = recognised.program.producers()
    parameters = recognised.program.parameters
    regions: dict[Node, Region] = {}
    for node, value in recognised.values.items():
        op = producers[value]
        if isinstance(op, Norm) and norms is not None:
            gain, bias = (parameters[name].source if name else "" for name in (op.weight, op.bias))
            regions[node] = Region(graph, node, recognised.inputs[node][0], norms, gain, bias)
        elif isinstance(op, Activation) and activations is not None:
            regions[node] = Region(graph, node, recognised.inputs[node][0], activations, None, None)
    return regions
