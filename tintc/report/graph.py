"""The graph of the auxiliary beside the modules that simulate it, as the page's template draws it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from tintc.ir.core import Program
from tintc.report.drawing import HEIGHT, WIDTH, Drawing, draw
from tintc.report.modules import ModuleReader, ModuleView
from tintc.report.sections import OUTSIDE, Node, Section, sections_of

LANES = ("auxiliary", "forward", "backward", "descent")
COLOURS = {
    "linear": "linear",
    "norm": "norm",
    "attention": "attention",
    "gate": "gate",
    "activation": "gate",
    "add": "add",
}
LONGEST = 12
"""Letters of a label that fit into a node."""


@dataclass(frozen=True)
class About:
    """What is said of one operation. text: its op in the auxiliary's program; views: its modules."""

    id: str
    title: str
    subtitle: str
    text: str
    views: tuple[ModuleView, ...]


def graph_of(
    program: Program, texts: Mapping[str, str], reader: ModuleReader
) -> tuple[list[dict[str, Any]], list[About]]:
    """Return the sections as the template takes them, and what is said of each of their nodes.

    texts: the ops of the auxiliary's program as they print, by the name of their value.
    """
    shown: list[dict[str, Any]] = []
    abouts: list[About] = []
    for at, section in enumerate(sections_of(program)):
        drawing = draw(section)
        names = {index: f"{at}-{index}" for index in range(len(section.nodes))}
        lanes = [_lane(section, drawing, names, lane) for lane in LANES]
        shown.append(
            {
                "title": section.title,
                "count": len(section.layers),
                "note": _note(section),
                "drawing": asdict(drawing),
                "port": drawing.places.get(OUTSIDE),
                "lanes": lanes,
            }
        )
        for index, node in enumerate(section.nodes):
            views = _views(node, reader)
            text = texts.get(node.origin, f"{node.kind}: {node.origin}")
            abouts.append(About(names[index], node.origin, _subtitle(section), text, views))
    return shown, abouts


def _views(node: Node, reader: ModuleReader) -> tuple[ModuleView, ...]:
    """Return the views of an operation's modules; where they hold the same weights alike, the first says how."""
    views: list[ModuleView] = []
    for ops in node.lanes.values():
        for op in ops:
            view = reader.view(op)
            if any(view.prefix == other.prefix for other in views):
                view = replace(view, prefix=None)
            views.append(view)
    return (*views,)


def _lane(section: Section, drawing: Drawing, names: Mapping[int, str], lane: str) -> dict[str, Any]:
    """Return nodes, paths and the name of the port of one lane."""
    source = "forward" if lane == "auxiliary" else lane
    pairs = section.edges.get(source, [])
    nodes = [_node(node, lane, names[index], drawing.places[index]) for index, node in enumerate(section.nodes)]
    port = ""
    if lane in ("auxiliary", "forward") and any(OUTSIDE in pair for pair in pairs):
        port = "from below"
    drawn = [pair for pair in pairs if lane != "backward" or OUTSIDE not in pair]
    return {"nodes": nodes, "paths": [drawing.path(*pair) for pair in drawn], "port": port}


def _node(node: Node, lane: str, name: str, place: tuple[float, float]) -> dict[str, Any]:
    x, y = round(place[0] - WIDTH / 2, 1), round(place[1] - HEIGHT / 2, 1)
    shown: dict[str, Any] = {"x": x, "y": y, "id": name, "colour": COLOURS.get(node.kind, "other"), "ghost": False}
    if lane == "auxiliary":
        label = node.label if len(node.label) <= LONGEST else node.kind
        return shown | {"label": label, "title": f"{node.origin}: {node.kind}"}
    ops = node.lanes.get(lane, [])
    if not ops:
        return shown | {"ghost": True}
    kinds = [op.opname.removeprefix("sim.") for op in ops]
    label = kinds[-1].removesuffix(f"_{lane}").replace("_gradient", "")[:LONGEST]
    if len(ops) > 1:
        label = f"{label} + {len(ops) - 1}"
    return shown | {"label": label, "title": f"{', '.join(kinds)} for {node.origin}"}


def _note(section: Section) -> str:
    """Return what the simulator does with a section, in a few words."""
    lanes = {lane for node in section.nodes for lane in node.lanes}
    if "descent" in lanes and section.layers:
        return "updated"
    if section.place == "in":
        return "run once: nothing below the updated layers changes"
    return ""


def _subtitle(section: Section) -> str:
    if len(section.layers) > 1:
        return f"{section.title} are alike; these are the modules of layer {section.layers[0]}, first pass and step."
    return f"{section.title}; first pass and step."
