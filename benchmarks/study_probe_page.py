"""Figure and page of the study of probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import report
from torch import Tensor

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, FIGURE = DOCS / "study-probe.md", DOCS / "study-probe.png"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
SEES = 0.99
"""R^2 from which on a probe has recovered what it was to recover."""


@dataclass(frozen=True)
class Target:
    """What is to be recovered. values ``[texts, positions, n]`` at `places` of every embedding; names: what `roles()`
    calls it; at: tokens, or prefixes."""

    title: str
    values: Tensor
    places: slice
    names: tuple[str, ...]
    at: str


@dataclass(frozen=True)
class Found:
    """What probes found of one target. scores, counts: R^2 and the shares of an embedding's numbers, after every call
    of a module, whose names are sites; control: the best R^2 for the truth of other texts; named: the modules that
    `roles()` names, with slots."""

    target: Target
    sites: Sequence[str]
    scores: Sequence[float]
    counts: Sequence[Tensor]
    control: float
    named: dict[str, set[int]]

    @property
    def best(self) -> int:
        return max(range(len(self.scores)), key=self.scores.__getitem__)

    def by_site(self) -> dict[str, float]:
        """Return the best R^2 of every module's calls."""
        best: dict[str, float] = {}
        for site, score in zip(self.sites, self.scores, strict=True):
            best[site] = max(score, best.get(site, score))
        return best

    def summary(self, pitch: int) -> str:
        shares = [round(float(part.sum()), 4) for part in self.counts[self.best].split(pitch)]
        best = f"best R^2 {self.scores[self.best]:.4f} after {self.sites[self.best]}"
        return f"{best}, shares of slots {shares}, control {self.control:.3f}; roles(): {self.named}"


def write(found: Sequence[Found], pitch: int, texts: int, setting: str) -> None:
    """Draw the figure, and replace the page's measured part."""
    _draw(found)
    lines = [setting, "", f"{texts} texts, of which every fourth is held out.", ""]
    rows = [["what is to be recovered", "best R²", "after", "seen after", "named by roles()", "slot", "control"]]
    for one in found:
        seen = [site for site, score in one.by_site().items() if score >= SEES]
        shares = [float(part.sum()) for part in one.counts[one.best].split(pitch)]
        slot = "-"
        if seen:
            slot = f"{shares.index(max(shares))}, {100 * max(shares):.1f} % of the probe"
        rows.append(
            [
                one.target.title,
                f"{max(0.0, one.scores[one.best]):.4f}",
                _short(one.sites[one.best]) if one.scores[one.best] > 0.01 else "-",
                ", ".join(map(_short, seen)) or "none",
                ", ".join(map(_short, one.named)),
                slot,
                f"{max(0.0, one.control):.3f}",
            ]
        )
    lines += [*report.table(rows), "", "![R² along the pass](study-probe.png)"]
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else f"# Probes of an update\n\n{BEGIN}\n{END}\n"
    head, _, rest = old.partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def _short(site: str) -> str:
    return "`" + site.replace("model.layers.", "") + "`"


def _draw(found: Sequence[Found]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plot, axes = plt.subplots(len(found), 1, figsize=(10, 2.2 * len(found)), layout="constrained", sharex=True)
    for axis, one in zip(axes, found, strict=True):
        axis.plot([max(0.0, score) for score in one.scores], color="tab:blue", drawstyle="steps-mid")
        for place, site in enumerate(one.sites):
            if site in one.named:
                axis.axvspan(place - 0.5, place + 0.5, color="tab:orange", alpha=0.3, linewidth=0)
        axis.set(ylim=(-0.03, 1.05), ylabel="R²")
        axis.set_title(f"{one.target.title} (orange: where roles() names it)", fontsize=9, loc="left")
        axis.grid(alpha=0.25)
    sites = found[0].sites
    starts = [(next(iter(group))[0], phase) for phase, group in groupby(enumerate(sites), key=lambda e: _phase(e[1]))]
    starts = [(start, name) for start, name in starts if name != "forward_0, end"]  # there is no room for it
    axes[-1].set_xticks([start for start, _ in starts], [name for _, name in starts], fontsize=7, rotation=60)
    axes[-1].set_xlabel("modules, in the order of the pass")
    plot.savefig(FIGURE, dpi=90)
    plt.close(plot)


def _phase(site: str) -> str:
    """Return the phase of a module, and its layer if that is a forward pass: the axis has a mark for each."""
    phase, _, rest = site.partition(".model.")
    if phase.startswith("loss"):
        return "loss"
    if not phase.startswith("forward"):
        return "backward and descent"
    layer = rest.split(".")[1] if rest.startswith("layers.") else "end"
    return f"{phase}, {layer}"
