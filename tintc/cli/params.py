"""The tables of `tintc inspect --params`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from tintc.cli.console import print_rows
from tintc.folding import ranges

COUNTS = ("table", "unrolled", "unique")
PHASES = ("forward", "backward", "descent", "loss")
TOTALS = ("forward", "backward", "descent", "total")


def print_modules(rows: Sequence[dict[str, Any]]) -> None:
    """Print counts by kind, layer and phase; layers whose counts are all the same share a row, which then holds their
    sum."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        inside = row["layer"] is not None and row["layer"] >= 0
        same = tuple(row[count] for count in COUNTS) if inside else (row["layer"],)
        groups[row["kind"], row["phase"], inside, *same].append(row)
    order = sorted(groups.values(), key=lambda group: (PHASES.index(group[0]["phase"]), group[0]["kind"]))
    shown = [
        (g[0]["phase"], g[0]["kind"], _layers([row["layer"] for row in g]), *(sum(r[c] for r in g) for c in COUNTS))
        for g in order
    ]
    total = ("all", "", "", *(sum(row[count] for row in rows) for count in COUNTS))
    print_rows("Parameters by phase, module and layers", ("phase", "module", "layers", *COUNTS), [*shown, total])


def _layers(layers: Sequence[int | None]) -> str:
    """Return ``0-3,5``, ``outside`` or ``shared``."""
    if layers[0] is None:
        return "shared"
    numbers = [layer for layer in layers if layer is not None]
    if numbers[0] < 0:
        return "outside"
    return ranges(numbers)


def print_paper(paper: Sequence[dict[str, Any]]) -> None:
    """Print the published totals, each beside the table's."""
    rows = [
        (row["name"], *(f"{row['published'][name]:.1f} / {row['table'][name]:.2f}" for name in TOTALS)) for row in paper
    ]
    print_rows("The paper's totals / by the table for the same shapes, 1e9", ("model", *TOTALS), rows)
