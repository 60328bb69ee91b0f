"""Figures and page of the study of gains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import report

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "study-gain.md"
FIGURES = {
    "approximations": "Which approximations",
    "layers": "How many layers",
    "steps": "How many steps",
    "optimisers": "Which optimiser, in two steps",
    "rate": "Which rate",
}
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"


def gain(entry: dict[str, Any]) -> tuple[float, str]:
    """Return the gain at the best rate of the grid, and that rate, marked where it stands at an end of the grid."""
    finite = {rate: loss for rate, loss in entry["after"].items() if loss is not None}
    best = min(finite, key=lambda rate: finite[rate])
    rates = list(entry["after"])
    mark = "*" if best in (rates[0], rates[-1]) else ""
    return entry["before"] - finite[best], f"{float(best):g}{mark}"


def write(shown: Sequence[dict[str, Any]], setting: str, blocks: int, size: int) -> None:
    """Draw the figures, and replace the page's measured part."""
    models = list(dict.fromkeys(entry["model"] for entry in shown))
    lines = [setting, "", f"{blocks} blocks of {size} tokens or as many as the texts have. *: an end of the grid."]
    for figure, title in FIGURES.items():
        entries = [entry for entry in shown if entry["figure"] == ("approximations" if figure == "rate" else figure)]
        if not entries:
            continue
        _draw(figure, entries, models)
        lines += ["", f"## {title}", "", f"![{title}](study-gain-{figure}.png)", ""]
        if figure != "rate":
            lines += _table(entries, models)
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else f"# What the gain depends on\n\n{BEGIN}\n{END}\n"
    head, _, rest = old.partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def _table(entries: Sequence[dict[str, Any]], models: Sequence[str]) -> list[str]:
    series = list(dict.fromkeys(entry["series"] for entry in entries))
    places = list(dict.fromkeys(entry["place"] for entry in entries))
    rows = [["", *(f"{model}, {one}" for model in models for one in series)]]
    for place in places:
        row = [place]
        for model in models:
            for one in series:
                own = [e for e in entries if (e["model"], e["series"], e["place"]) == (model, one, place)]
                if not own:
                    row.append("-")
                    continue
                nats, rate = gain(own[0])
                row.append(f"{nats:.4f} at {rate}")
        rows.append(row)
    return report.table(rows)


def _draw(figure: str, entries: Sequence[dict[str, Any]], models: Sequence[str]) -> None:
    """One figure, a panel for each model (and, of rates, for each kind of step)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    series = list(dict.fromkeys(entry["series"] for entry in entries))
    panels = [(model, one) for model in models for one in (series if figure == "rate" else [""])]
    panels = [(m, s) for m, s in panels if any(e["model"] == m and (not s or e["series"] == s) for e in entries)]
    plot, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.8), layout="constrained", squeeze=False)
    for axis, (model, one) in zip(axes[0], panels, strict=True):
        own = [entry for entry in entries if entry["model"] == model]
        if figure == "rate":
            _rates(axis, [entry for entry in own if entry["series"] == one])
        elif figure in ("layers", "steps"):
            for name in series:
                line = [entry for entry in own if entry["series"] == name]
                axis.plot([int(e["place"]) for e in line], [gain(e)[0] for e in line], "o-", label=name)
            axis.set_xlabel(f"{figure} that are simulated")
        else:
            _bars(axis, own, series)
        axis.set_title(f"{model}{', ' if one else ''}{one}", fontsize=10)
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("gain in nats a token" if figure not in ("approximations", "optimisers") else "")
    axes[0][0].legend(fontsize=7, loc="best" if figure in ("layers", "steps") else "lower left")
    plot.savefig(DOCS / f"study-gain-{figure}.png", dpi=90)
    plt.close(plot)


def _rates(axis: Any, entries: Sequence[dict[str, Any]]) -> None:
    top = max(gain(entry)[0] for entry in entries)
    for entry in entries:
        points = [(float(rate), entry["before"] - loss) for rate, loss in entry["after"].items() if loss is not None]
        axis.plot(*zip(*points, strict=True), "o-", label=entry["place"], markersize=3)
    axis.set(xscale="log", xlabel="rate", ylim=(-0.6 * top, 1.1 * top))
    axis.axhline(0, color="grey", linewidth=0.8)


def _bars(axis: Any, entries: Sequence[dict[str, Any]], series: Sequence[str]) -> None:
    places = list(dict.fromkeys(entry["place"] for entry in entries))
    height = 0.8 / len(series)
    for index, name in enumerate(series):
        own = [entry for entry in entries if entry["series"] == name]
        at = [places.index(entry["place"]) + (index - (len(series) - 1) / 2) * height for entry in own]
        axis.barh(at, [gain(entry)[0] for entry in own], 0.9 * height, label=name)
    axis.set_yticks(range(len(places)), places, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("gain in nats a token")
