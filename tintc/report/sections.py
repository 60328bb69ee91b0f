"""A simulator's program as sections to be drawn: layers that are alike are one, and every value of the auxiliary is a
node, with the modules that simulate it in lanes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from tintc.folding import ranges
from tintc.ir.core import Program, Value
from tintc.ir.simulator import SimOp, StoredWeights

LANES = {"forward": "forward", "loss": "backward", "backward": "backward", "descent": "descent"}
"""The lane of every phase."""
OUTSIDE = -1
"""The node that stands for whatever a section reads from the sections before it."""
NUMBERED = re.compile(r"\d+")
UNLIKE = ("origin", "layer", "write", "softmax", "name", "target")
"""Attributes in which modules of layers that are alike differ."""


@dataclass
class Node:
    """A value of the auxiliary, and the ops of the first pass and step that simulate it, by lane.

    origin: the value's name; label: what is written on it; kind: of its op, such as ``linear``.
    """

    origin: str
    label: str
    kind: str
    lanes: dict[str, list[SimOp]] = field(default_factory=dict)


@dataclass
class Section:
    """What is drawn once. place: ``before``, ``in`` or ``after`` the layers; layers: of the auxiliary, if it is in
    them; edges: pairs of indices of nodes (or `OUTSIDE`), by lane, in the direction in which values go there."""

    place: str
    layers: list[int]
    nodes: list[Node]
    edges: dict[str, list[tuple[int, int]]]

    @property
    def title(self) -> str:
        """Return the layers, folded, or where else it is."""
        if not self.layers:
            return f"{self.place.capitalize()} the layers"
        if len(self.layers) == 1:
            return f"Layer {self.layers[0]}"
        return f"Layers {ranges(self.layers)}"


def sections_of(program: Program) -> list[Section]:
    """Return the sections of a simulator's program, from the embeddings to the head."""
    forward = [op for op in program.ops if isinstance(op, SimOp) and _is_first_pass(op)]
    groups: dict[int, list[SimOp]] = {}
    for op in forward:
        place = op.layer
        if place < 0 and any(number >= 0 for number in groups):
            place = program.attributes["n_layers"]
        groups.setdefault(place, []).append(op)
    others: dict[str, list[SimOp]] = {}
    for op in program.ops:
        if isinstance(op, SimOp) and op.step == 0 and op.phase in ("loss", "backward", "descent"):
            others.setdefault(op.origin, []).append(op)
    folded: dict[tuple[object, ...], Section] = {}
    for layer, ops in sorted(groups.items()):
        section = _section(program, layer, ops, others)
        kept = folded.setdefault(_signature(section), section)
        if kept is not section:
            kept.layers += section.layers
    return list(folded.values())


def _is_first_pass(op: SimOp) -> bool:
    return op.phase == "forward" and op.step == 0 and not isinstance(op, StoredWeights)


def _section(program: Program, layer: int, ops: list[SimOp], others: dict[str, list[SimOp]]) -> Section:
    nodes: list[Node] = []
    for op in ops:
        lanes: dict[str, list[SimOp]] = {"forward": [op]}
        for other in others.get(op.origin, []):
            lanes.setdefault(LANES[other.phase], []).append(other)
        nodes.append(Node(op.origin, _label(op), op.opname.removeprefix("sim.").removesuffix("_forward"), lanes))
    makers = {value: index for index, node in enumerate(nodes) for op in _all_ops(node) for value in op.results}
    edges = {lane: _edges(nodes, makers, lane) for lane in ("forward", "backward")}
    if layer < 0:
        return Section("before", [], nodes, edges)
    if layer < program.attributes["n_layers"]:
        return Section("in", [layer], nodes, edges)
    return Section("after", [], nodes, edges)


def _all_ops(node: Node) -> Iterable[SimOp]:
    return (op for ops in node.lanes.values() for op in ops)


def _edges(nodes: list[Node], makers: dict[Value, int], lane: str) -> list[tuple[int, int]]:
    """Return from which node to which values go in a lane."""
    edges: dict[tuple[int, int], None] = {}
    for index, node in enumerate(nodes):
        own = node.lanes.get(lane, [])
        made_here = {value for op in own for value in op.results}
        for op in own:
            for value in op.operands:
                if value.type.is_weights or value in made_here:
                    continue
                source = makers.get(value, OUTSIDE)
                of_lane = source == OUTSIDE or any(value in made.results for made in nodes[source].lanes.get(lane, []))
                if of_lane and not (lane == "backward" and source == OUTSIDE and _is_forward(value)):
                    edges[source, index] = None
    return list(edges)


def _is_forward(value: Value) -> bool:
    """Return True for a value of a forward pass, by the name that the lowering gives it."""
    return re.search(r"\.f\d+(-\d+)?$", value.name) is not None


def _label(op: SimOp) -> str:
    """Return the last name of an op's value, without numbers that only tell it from others."""
    parts = [part for part in op.origin.split(".") if not part.isdigit()]
    if not parts:
        return op.opname.removeprefix("sim.")
    return parts[-1]


def _signature(section: Section) -> tuple[object, ...]:
    """Return what sections have in common that can be drawn as one."""
    nodes = tuple(
        (
            NUMBERED.sub("#", node.origin),
            tuple((lane, tuple(_likeness(op) for op in ops)) for lane, ops in node.lanes.items()),
        )
        for node in section.nodes
    )
    edges = tuple((lane, tuple(pairs)) for lane, pairs in section.edges.items())
    return section.place, nodes, edges


def _likeness(op: SimOp) -> tuple[object, ...]:
    """Return an op's attributes and types, but for the names of tensors."""
    shown = {name: value for name, value in op.attributes().items() if name not in UNLIKE}
    attributes = NUMBERED.sub("#", str(sorted((k, v) for k, v in shown.items() if isinstance(v, str))))
    numbers = str(sorted((k, v) for k, v in shown.items() if not isinstance(v, str)))
    return op.opname, attributes, numbers, tuple(str(value.type) for value in (*op.operands, *op.results))
