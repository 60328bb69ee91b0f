"""What the benchmarks share: their sections of RESULTS.md, tables, the machine, ratios with their spread."""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
PLOTS = HERE / "plots"


def write_section(name: str, title: str, body: Sequence[str], results: Path = RESULTS) -> None:
    """Replace the section `name` of RESULTS.md, or append it; the other sections stay as they are."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    section = "\n".join([begin, f"## {title}", "", *body, end])
    old = results.read_text(encoding="utf-8") if results.exists() else "# Measured\n"
    head, found, rest = old.partition(begin)
    tail = rest.partition(end)[2] if found else "\n"
    results.write_text(head.rstrip("\n") + "\n\n" + section + tail, encoding="utf-8")


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def command_line() -> str:
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def setting(dtype: str = "fp32") -> str:
    """When and on what this was measured, in one line of markdown."""
    return (
        f"`{command_line()}`, {date.today()}. {processor()}, {torch.get_num_threads()} threads, {dtype}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}."
    )


def processor() -> str:
    """The processor's name as Linux gives it, and its cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


@dataclass(frozen=True)
class Bar:
    """One bar of a plot: what was found in every round, and the most it should be."""

    label: str
    values: Sequence[float]
    target: float | None = None


def plot_bars(name: str, bars: Sequence[Bar], axis: str) -> str:
    """Write a plot of medians, with smallest and largest as whiskers and targets as marks; its line of markdown."""
    import matplotlib.pyplot as plt  # which a GPU machine need not have

    PLOTS.mkdir(exist_ok=True)
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.32 * len(bars)), layout="constrained")
    for place, bar in enumerate(bars):
        median = statistics.median(bar.values)
        whiskers = [[median - min(bar.values)], [max(bar.values) - median]]
        missed = bar.target is not None and median > bar.target
        axes.barh(place, median, xerr=whiskers, color="tab:red" if missed else "tab:blue", capsize=3, height=0.6)
        if bar.target is not None:
            axes.plot([bar.target] * 2, [place - 0.4, place + 0.4], "k-", lw=2)
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.invert_yaxis()
    axes.set_xlabel(f"{axis} (black: target)" if any(bar.target for bar in bars) else axis)
    axes.grid(alpha=0.3, axis="x")
    figure.savefig(PLOTS / f"{name}.png", dpi=110)
    plt.close(figure)
    return f"![{name}](plots/{name}.png)"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float]) -> str:
    """Median, and smallest to largest."""
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def verdict(value: float, target: float) -> str:
    return f"{'pass' if value <= target else '**fail**'} (<= {target:g})"
