"""The picture of `tintc plan`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from tintc.cli.pictures import pyplot, save_figure
from tintc.lowering.passes.layout_candidates import Candidate, Survey

DEAREST = 4.0
"""Layouts that cost more than this many times the cheapest are left out of the picture."""
MOST_SHARDS = 8
"""And those with more shards."""


def draw(layouts: Survey, png: Path, title: str) -> None:
    """Draw prefixes K against D_sim and against estimated work, coloured by S'.

    A line joins the layouts that no other beats, with their S and S' (those of one K together); the chosen one is a
    star.
    """
    taken = layouts.chosen
    figure, axes = pyplot().subplots(1, 2, figsize=(11, 4.5), constrained_layout=True)
    panels = (("D_sim", lambda c: c.layout.d_sim), ("multiply-adds of a literal run", lambda c: c.work))
    front = sorted(_shown(layouts, layouts.frontier()), key=lambda c: (c.layout.n_prefixes, -c.work))
    for axis, (label, value) in zip(axes, panels, strict=True):
        for shards, points in _by_shards(_shown(layouts, layouts.feasible)).items():
            axis.plot([c.layout.n_prefixes for c in points], [value(c) for c in points], "o", label=f"S' = {shards}")
        axis.plot([c.layout.n_prefixes for c in front], [value(c) for c in front], "-", color="grey", zorder=0)
        for prefixes, same in groupby(front, key=lambda c: c.layout.n_prefixes):
            *others, last = same
            names = "  ".join(f"{c.layout.stack},{c.layout.shards}" for c in (*others, last))
            axis.annotate(names, (prefixes, value(last)), (4, 4), textcoords="offset points", fontsize=7)
        chosen = f"chosen: S = {taken.layout.stack}, S' = {taken.layout.shards}"
        axis.plot(taken.layout.n_prefixes, value(taken), "k*", markersize=14, label=chosen)
        axis.set(xlabel="prefixes K", ylabel=label, yscale="log")
        axis.grid(True, which="both", alpha=0.25)
    axes[1].legend(fontsize=8)
    figure.suptitle(f"Layouts (S, S') for {title}, texts of {taken.layout.max_length} tokens")
    save_figure(figure, png)


def _shown(layouts: Survey, candidates: Iterable[Candidate]) -> list[Candidate]:
    limit = DEAREST * layouts.chosen.cost
    return [c for c in candidates if (c.cost <= limit and c.layout.shards <= MOST_SHARDS) or c is layouts.chosen]


def _by_shards(candidates: Iterable[Candidate]) -> dict[int, list[Candidate]]:
    groups: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.layout.shards, []).append(candidate)
    return dict(sorted(groups.items()))
