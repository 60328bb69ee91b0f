"""Mixtures of experts in an exported graph with the approximations of a simulator, in place of their nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.captured_experts import CapturedExperts
from tintc.frontend.importer import Recognised
from tintc.reference.approximations import Approximations, Lookup, Override
from tintc.reference.captured import run_nodes
from tintc.reference.regions import activation_regions


def approximate_experts(
    graph: CapturedGraph, recognise: Callable[[], Recognised], approximations: Approximations
) -> dict[Node, Override]:
    """Return overrides by which routing weights are constants, and activations inside experts differentiated by finite
    differences, as the approximations say. recognise: returns the graph as the importer reads it."""
    overrides: dict[Node, Override] = {}
    for node in graph.module.graph.nodes:
        if not isinstance(node.target, CapturedExperts):
            continue
        regions: dict[Node, Override] = {}
        if approximations.activations is not None and node in recognise().inner:
            placed = recognise().inner[node]
            program = recognise().program
            regions = activation_regions(node.target.gate, program, placed, approximations.activations)
        overrides[node] = _Approximated(node, approximations.router, regions)
    return overrides


class _Approximated:
    """A node of experts. detached: the routing weights are constants; regions: what stands for nodes of the gate."""

    def __init__(self, node: Node, detached: bool, regions: Mapping[Node, Override]):
        self.node = node
        self.detached = detached
        self.regions = regions
        self.inputs = tuple(node.all_input_nodes)

    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Tensor:
        args: Any = map_arg(self.node.args, lookup)
        x, index, weights, *parameters = args
        if self.detached:
            weights = weights.detach()
        experts = self.node.target
        assert isinstance(experts, CapturedExperts)
        gate = partial(self._gate, experts.gate, dtype)
        return experts.compute(x, index, weights, tuple(parameters), gate)

    def _gate(self, gate: CapturedGraph, dtype: torch.dtype | None, hidden: Tensor) -> Tensor:
        """Return the gate's value for the vectors ``[n, F]`` of one expert."""
        return run_nodes(gate, hidden[None], (gate.logits,), None, dtype, self.regions)[0][0]
