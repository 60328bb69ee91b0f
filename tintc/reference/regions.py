"""Norms and activations of an exported graph, differentiated by finite differences, in place of their nodes.

The importer says where a norm or an activation begins and ends, and which of its inputs are gain and bias.
"""

from __future__ import annotations

from torch.fx import Node

from tintc.frontend.builder import Placed
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.importer import Recognised
from tintc.frontend.rules.shared_factors import shared_factors
from tintc.ir.auxiliary import Activation, Multiply, Norm, Scale
from tintc.ir.core import Op, Program
from tintc.ir.functions import KINKED
from tintc.reference.approximations import Difference, Override
from tintc.reference.difference_region import Region, ScaledRegion, SharedFactorsRegion
from tintc.reference.parts import parts_read


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
            regions[node] = ScaledRegion(graph, node, sources[0], difference, before.factor, op.factor)
        elif isinstance(op, Multiply) and (factors := shared_factors(graph, node)) is not None:
            regions[node] = SharedFactorsRegion(graph, factors, difference)
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
