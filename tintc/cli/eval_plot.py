"""The pictures of `tintc eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tintc.cli.pictures import pyplot, save_figure
from tintc.evaluation.experiments.in_context import IclRow
from tintc.evaluation.experiments.language_modelling import Row

DODGE = 0.006
"""How far columns stand apart, in train fractions, so that their intervals do not hide each other."""
ROW_HEIGHT = 0.35
"""Inches of a bar."""


def draw_perplexities(rows: Sequence[Row], names: Sequence[str], png: Path, title: str) -> None:
    """Draw every column's perplexity, with its interval, over the train fraction; results that are not finite are left
    out."""
    figure, axis = pyplot().subplots(figsize=(7, 4.5), constrained_layout=True)
    for place, name in enumerate(names):
        shift = DODGE * (place - (len(names) - 1) / 2)
        points: list[tuple[float, float, list[float]]] = []
        for row in rows:
            value, ends = row.perplexity[name], row.interval[name]
            if value is not None and ends is not None:
                points.append((row.train_fraction + shift, value, ends))
        if points:
            places, values, intervals = zip(*points, strict=True)
            axis.errorbar(places, values, _whiskers(values, intervals), fmt="o-", capsize=3, label=name)
    axis.set(xlabel="train fraction", ylabel="perplexity of the rest", title=title)
    axis.grid(True, alpha=0.25)
    axis.legend(fontsize=8)
    save_figure(figure, png)


def draw_accuracies(rows: Sequence[IclRow], names: Sequence[str], png: Path, title: str) -> None:
    """Draw every column's accuracy, with its interval, as bars below each other, a group for every row."""
    size = (8, 1.2 + ROW_HEIGHT * len(rows) * len(names))
    figure, axis = pyplot().subplots(figsize=size, constrained_layout=True)
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        values = [row.accuracy[name] for row in rows]
        at = [index + (place - (len(names) - 1) / 2) * height for index in range(len(rows))]
        whiskers = _whiskers(values, [row.interval[name] for row in rows])
        axis.barh(at, values, 0.9 * height, xerr=whiskers, capsize=2, label=name)
    axis.set_yticks(range(len(rows)), [_setting(row) for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel="accuracy", xlim=(0, 1), title=title)
    axis.grid(True, axis="x", alpha=0.25)
    axis.legend(fontsize=8)
    save_figure(figure, png)


def _setting(row: IclRow) -> str:
    parts = [row.task, f"{row.shots} shots"]
    if row.shots:
        parts += [str(row.format), str(row.loss)]
    parts.append(f"{row.layers}x{row.steps}")
    if row.calibration != "none":
        parts.append("calibrated")
    return ", ".join(parts)


def _whiskers(values: Sequence[float], intervals: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return how far intervals reach below and above the values."""
    below = [max(0.0, value - low) for value, (low, _) in zip(values, intervals, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(values, intervals, strict=True)]
    return [below, above]
