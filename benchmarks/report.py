"""What the benchmarks share: their sections of RESULTS.md, tables, the machine, ratios with their spread."""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Sequence
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


def setting() -> str:
    """When and on what this was measured, in one line of markdown."""
    return (
        f"`{command_line()}`, {date.today()}. {processor()}, {torch.get_num_threads()} threads, fp32, "
        f"torch {torch.__version__}, transformers {transformers.__version__}."
    )


def processor() -> str:
    """The processor's name as Linux gives it, and its cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float]) -> str:
    """Median, and smallest to largest."""
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def verdict(value: float, target: float) -> str:
    return f"{'pass' if value <= target else '**fail**'} (<= {target:g})"
