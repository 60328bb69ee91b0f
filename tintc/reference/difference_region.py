"""Finite differences inside an FX graph: the norms and activations of it as `torch.autograd.Function`s over its nodes.

What lies between the two ends of a region is run as the graph has it, whatever operations spell it: once for the value,
and twice more, at x and beside x, for the derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import execute
from tintc.frontend.graph.layouts import VectorLayout, vector_layout
from tintc.frontend.graph.node_queries import constant_vector
from tintc.frontend.graph.regions import between
from tintc.frontend.rules.shared_factors import SharedFactors
from tintc.reference.approximations import Difference, Lookup
from tintc.reference.parts import Parts


class Region:
    """The function of one vector per token that lies between two nodes, with its derivative by finite differences.

    A norm's gain and bias stay outside of the difference, as in Def. F.3: the region runs with gain 1 and bias 0, and
    both are applied to its result, where autograd differentiates them exactly. parts: the columns of an activation
    that are differentiated together, None: all.
    """

    def __init__(
        self,
        graph: CapturedGraph,
        root: Node,
        source: Node,
        difference: Difference,
        gain: str | None,
        bias: str | None,
        parts: Parts | None = None,
    ):
        self.root, self.source, self.difference = root, source, difference
        self.parts = parts
        self.nodes = between(graph, root, (source,))
        outside = [value for node in self.nodes for value in node.all_input_nodes if value not in {source, *self.nodes}]
        self.inputs = (source, *dict.fromkeys(outside))
        self.is_norm = gain is not None
        self.layout: VectorLayout | None = None
        if not self.is_norm:
            self.layout = vector_layout(graph, source)
        self.gains = [node for node in outside if gain and _is(graph, node, gain)]
        self.biases = [node for node in outside if bias and _is(graph, node, bias)]

    def function(self, lookup: Lookup, dtype: torch.dtype | None) -> Callable[[Tensor], Tensor]:
        """Return the region as a function of its source, with gain 1 and bias 0."""
        plain = {node: lookup(node) for node in self.inputs}  # the run lets go of them before the derivative is due
        plain |= {node: torch.ones_like(plain[node]) for node in self.gains}
        plain |= {node: torch.zeros_like(plain[node]) for node in self.biases}

        def f(x: Tensor) -> Tensor:
            values: dict[Node, Any] = {**plain, self.source: x}
            for node in self.nodes:
                values[node] = execute(node, values.__getitem__, dtype)
            return values[self.root]

        return f

    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Tensor:
        y: Any = self.differentiated(lookup(self.source), self.function(lookup, dtype))
        if self.gains:
            y = y * lookup(self.gains[0])
        if self.biases:
            y = y + lookup(self.biases[0])
        return y

    def differentiated(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """Return f(x), whose derivative is a difference with a step for every token, or head where a norm has them, or
        part where an activation has."""
        result: Any = _FirstOrder.apply(x, f, self.difference, self.is_norm, self.layout, self.parts)
        return result


def _is(graph: CapturedGraph, node: Node, name: str) -> bool:
    """Return True if a node is the tensor of that name, or the parameter that the importer has made it of."""
    return constant_vector(graph, node) in (name, graph.origins.get(name, name))


class _FirstOrder(torch.autograd.Function):
    """f forward; backward the difference along the gradient, because the Jacobians of norms and activations are
    symmetric."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        f: Callable[[Tensor], Tensor],
        difference: Difference,
        is_norm: bool,
        layout: VectorLayout | None,
        parts: Parts | None,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layout = layout
        ctx.parts = parts
        ctx.f = f
        ctx.difference = difference
        ctx.is_norm = is_norm
        return f(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        (g,) = gradients
        g = g.reshape(x.shape)
        layout = ctx.layout
        if layout is None or (layout.is_rows and ctx.parts is None):
            pulled = ctx.difference.along(lambda z: ctx.f(z).reshape(x.shape), x, g, ctx.is_norm)
            return pulled, *UNUSED

        def rows(value: Tensor) -> Tensor:
            return layout.take(value.reshape(x.shape), 1, value.numel() // layout.width)

        def f(z: Tensor) -> Tensor:
            return rows(ctx.f(layout.place(z, tuple(x.shape))))

        if ctx.parts is None:
            pulled = ctx.difference.along(f, rows(x), rows(g), ctx.is_norm)
        else:
            pulled = _by_parts(f, rows(x), rows(g), ctx.difference, ctx.parts)
        return layout.place(pulled, tuple(x.shape)), *UNUSED


UNUSED = (None,) * 5
"""Gradients of what is no tensor."""


def _by_parts(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor, difference: Difference, parts: Parts) -> Tensor:
    """Return the derivative at ``x [B, T, W]`` along g of a function of single numbers, with a step for every part."""
    pulled = torch.zeros_like(x)
    for part in parts:
        columns = list(part)

        def of_part(z: Tensor, columns: list[int] = columns) -> Tensor:
            moved = x.clone()
            moved[..., columns] = z
            return f(moved)[..., columns]

        pulled[..., columns] = difference.along(of_part, x[..., columns], g[..., columns], False)
    return pulled


class ScaledRegion(Region):
    """``b f(a x)`` with numbers a and b: the difference is taken of f, at ``a x``."""

    def __init__(self, graph: CapturedGraph, root: Node, source: Node, difference: Difference, a: float, b: float):
        super().__init__(graph, root, source, difference, None, None)
        self.a = a
        self.b = b

    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Tensor:
        function = self.function(lookup, dtype)
        return self.b * self.differentiated(self.a * lookup(self.source), lambda u: function(u / self.a) / self.b)


class SharedFactorsRegion:
    """The difference is taken of f at its source's numbers, one beside every coordinate of the vector."""

    def __init__(self, graph: CapturedGraph, factors: SharedFactors, difference: Difference):
        self.region = Region(graph, factors.activated, factors.source, difference, None, None)
        self.factors = factors
        self.vector_layout = vector_layout(graph, factors.vector)
        self.source_layout = vector_layout(graph, factors.source)
        self.inputs = (factors.vector, *self.region.inputs)

    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Tensor:
        vector: Tensor = lookup(self.factors.vector)
        assert self.vector_layout is not None and self.source_layout is not None
        length = vector.shape[self.vector_layout.length]
        batch = vector.shape[0]
        if self.vector_layout.length == 0:
            batch = 1  # one text at a time
        spread = self.source_layout.take(lookup(self.factors.source), batch, length)[..., self.factors.columns]
        function = self.region.function(lookup, dtype)
        f = cast(Tensor, _FirstOrder.apply(spread, function, self.region.difference, False, None, None))
        return vector * self.vector_layout.place(f, tuple(vector.shape))
