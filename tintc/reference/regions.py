"""Finite differences inside an FX graph: norms and activations as `torch.autograd.Function`s over regions of nodes.

The importer says where a norm or an activation begins and ends, and which of its inputs are gain and bias. What lies
between is run as the graph has it, whatever operations spell it: once for the value, and twice more, at x and beside x,
for the derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.builder import Placed
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import execute
from tintc.frontend.graph.layouts import VectorLayout, vector_layout
from tintc.frontend.graph.node_queries import constant_vector
from tintc.frontend.graph.regions import between
from tintc.frontend.importer import Recognised
from tintc.frontend.rules.shared_factors import SharedFactors, shared_factors
from tintc.ir.auxiliary import Activation, Multiply, Norm, Scale
from tintc.ir.core import Op, Program
from tintc.ir.functions import KINKED
from tintc.reference.approximations import Difference
from tintc.reference.captured import Lookup, Override
from tintc.reference.parts import Parts, parts_read


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


def difference_regions(
    graph: CapturedGraph, recognised: Recognised, norms: Difference | None, activations: Difference | None
) -> dict[Node, Override]:
    """Return overrides for the norms and activations of a recognised graph; None leaves a kind to autograd."""
    placed = Placed(recognised.values, recognised.inputs)
    regions: dict[Node, Override] = {}
    if activations is not None:
        regions |= activation_regions(graph, recognised.program, placed, activations)
    producers = recognised.program.producers()
    parameters = recognised.program.parameters
    for node, value in recognised.values.items():
        op = producers[value]
        if isinstance(op, Norm) and norms is not None and not _makes_nothing(placed, node):
            gain, bias = (parameters[name].source if name else "" for name in (op.weight, op.bias))
            regions[node] = Region(graph, node, recognised.inputs[node][0], norms, gain, bias)
    return regions


def _makes_nothing(placed: Placed, node: Node) -> bool:
    """Return True if a node has the value of what it reads: heads put together in the order in which they were."""
    return any(placed.values[source] is placed.values[node] for source in placed.inputs.get(node, ()))


def activation_regions(
    graph: CapturedGraph, program: Program, placed: Placed, difference: Difference
) -> dict[Node, Override]:
    """Return overrides for the activations among the nodes of a graph, or of a gate's, that became ops; the soft cap of
    logits is none, and is differentiated exactly."""
    producers = program.producers()
    after_head = _after_head(program)
    regions: dict[Node, Override] = {}
    for node, sources in placed.inputs.items():
        if _makes_nothing(placed, node):
            continue
        op = producers[placed.values[node]]
        act = op
        if isinstance(op, Scale | Multiply):
            act = producers[op.operands[-1]]
        if not isinstance(act, Activation) or act in after_head or _is_exact(difference, act):
            continue
        before = producers[act.operands[0]]
        if act is op:
            parts = parts_read(program, op.result)
            regions[node] = Region(graph, node, sources[0], difference, None, None, parts)
        elif isinstance(op, Scale) and isinstance(before, Scale) and before.operands[0] is placed.values[sources[0]]:
            regions[node] = _Scaled(graph, node, sources[0], difference, before.factor, op.factor)
        elif isinstance(op, Multiply) and (factors := shared_factors(graph, node)) is not None:
            regions[node] = _SharedFactors(graph, factors, difference)
    return regions


def _is_exact(difference: Difference, act: Activation) -> bool:
    """Return True if autograd differentiates an activation, because it has a kink that steps both ways would cross."""
    return difference.scheme == "central" and act.fn in KINKED


def _after_head(program: Program) -> set[Op]:
    """Return the scales and activations between the head's product and the logits."""
    producers = program.producers()
    after: set[Op] = set()
    op = producers[program.outputs["logits"]]
    while isinstance(op, Scale | Activation):
        after.add(op)
        op = producers[op.operands[0]]
    return after


class _Scaled(Region):
    """``b f(a x)`` with numbers a and b: the difference is taken of f, at ``a x``."""

    def __init__(self, graph: CapturedGraph, root: Node, source: Node, difference: Difference, a: float, b: float):
        super().__init__(graph, root, source, difference, None, None)
        self.a = a
        self.b = b

    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Tensor:
        function = self.function(lookup, dtype)
        return self.b * self.differentiated(self.a * lookup(self.source), lambda u: function(u / self.a) / self.b)


class _SharedFactors:
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
