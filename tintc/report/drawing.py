"""Sections as drawings: places of nodes and lines of edges, by a library's layout of layered graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from tintc.report.sections import OUTSIDE, Section

ACROSS = 86
"""Pixels between the middles of two nodes side by side."""
DOWN = 40
"""Pixels between the middles of two nodes one below the other."""
WIDTH = 78
HEIGHT = 24
MARGIN = 8
SPACING = 100.0
"""Units of the library between two nodes."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Drawing:
    """A section in pixels: middles of its nodes by index (`sections.OUTSIDE` for what it reads), and lines of its
    forward edges, from point to point."""

    width: float
    height: float
    places: Mapping[int, Point]
    lines: Mapping[tuple[int, int], tuple[Point, ...]]

    def path(self, source: int, target: int) -> str:
        """Return the edge as an SVG path, for values that go either way along it."""
        if (source, target) in self.lines:
            points = list(self.lines[source, target])
        elif (target, source) in self.lines:
            points = list(reversed(self.lines[target, source]))
        else:
            points = [self.places[source], self.places[target]]
        return _curve(
            [_at_border(points[0], points[1], source), *points[1:-1], _at_border(points[-1], points[-2], target)]
        )


def _at_border(end: Point, other: Point, node: int) -> Point:
    """Return where an edge meets a node's border, above or below its middle `end`; `OUTSIDE` is a point."""
    half = HEIGHT / 2
    if node == OUTSIDE:
        half = 0.0
    if other[1] < end[1]:
        half = -half
    return end[0], end[1] + half


def draw(section: Section) -> Drawing:
    """Return a section's drawing: values flow downwards, and no two nodes share a place."""
    from fast_sugiyama import from_edges

    pairs = section.edges["forward"]
    places: dict[int, Point] = {}
    lines: dict[tuple[int, int], tuple[Point, ...]] = {}
    left = 0.0
    if pairs:
        # Nodes are shifted by one: the library's own, which bend long edges, are numbered from their count on.
        shifted = sorted({node for pair in pairs for node in pair})
        number = {node: index for index, node in enumerate(shifted)}
        layouts = from_edges(
            [(number[a], number[b]) for a, b in pairs],
            vertex_spacing=SPACING,
            dummy_vertices=True,
            dummy_size=0.25,
            check_layout=False,
        )
        for positions, width, height, edges in layouts:
            points = {int(at): (left + x / SPACING * ACROSS, (height - y) / SPACING * DOWN) for at, (x, y) in positions}
            places |= {shifted[at]: point for at, point in points.items() if at < len(shifted)}
            steps: dict[int, list[int]] = {}
            for source, target in edges or []:
                steps.setdefault(int(source), []).append(int(target))
            for source in points:
                if source < len(shifted):
                    for first in steps.get(source, []):
                        chain = [source, first]
                        while chain[-1] >= len(shifted):
                            chain.append(steps[chain[-1]][0])
                        lines[shifted[source], shifted[chain[-1]]] = tuple(points[at] for at in chain)
            left += width / SPACING * ACROSS + ACROSS
    for index in range(len(section.nodes)):
        if index not in places:
            places[index] = (left, 0.0)
            left += ACROSS
    if _is_mirrored(places):
        places = {node: (-x, y) for node, (x, y) in places.items()}
        lines = {pair: tuple((-x, y) for x, y in line) for pair, line in lines.items()}
    return _framed(places, lines)


def _is_mirrored(places: Mapping[int, Point]) -> bool:
    """Return True if nodes side by side mostly stand in the reverse of the program's order."""
    rows: dict[float, list[int]] = {}
    for node in sorted(places):
        rows.setdefault(places[node][1], []).append(node)
    steps = [places[b][0] - places[a][0] for row in rows.values() for a, b in pairwise(row)]
    return sum(step < 0 for step in steps) * 2 > len(steps)


def _framed(places: dict[int, Point], lines: dict[tuple[int, int], tuple[Point, ...]]) -> Drawing:
    """Return the drawing moved to where its frame begins at 0."""
    points = [*places.values(), *(point for line in lines.values() for point in line)]
    x_0 = min(x for x, _ in points) - WIDTH / 2 - MARGIN
    y_0 = min(y for _, y in points) - HEIGHT / 2 - MARGIN

    def moved(point: Point) -> Point:
        return round(point[0] - x_0, 1), round(point[1] - y_0, 1)

    width = max(x for x, _ in points) + WIDTH / 2 + MARGIN - x_0
    height = max(y for _, y in points) + HEIGHT / 2 + MARGIN - y_0
    return Drawing(
        round(width, 1),
        round(height, 1),
        {node: moved(point) for node, point in places.items()},
        {pair: tuple(map(moved, line)) for pair, line in lines.items()},
    )


def _curve(points: list[Point]) -> str:
    """Return a smooth path through the points, that leaves and enters nodes vertically."""
    (x, y), *others = points
    parts = [f"M{x:g} {y:g}"]
    for to_x, to_y in others:
        middle = (y + to_y) / 2
        parts.append(f"C{x:g} {middle:g} {to_x:g} {middle:g} {to_x:g} {to_y:g}")
        x, y = to_x, to_y
    return "".join(parts)
