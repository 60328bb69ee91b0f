"""The measured part of docs/results.md: tables of what `tintc eval` printed, each below its command."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import report

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
from tintc.evaluation.experiments.bootstrap import interval

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
Done = Mapping[str, Mapping[str, Any]]
PERPLEXITIES = {
    "SmolLM2-135M on WikiText, half of each block": ("half-sgd", "half-normalized"),
    "SmolLM2-135M on WikiText, other fractions": ("others-sgd", "others-normalized"),
    "SmolLM2-135M on WikiText, plain steps at other rates": ("half-sgd-6e-5", "half-sgd-2.4e-4"),
    "Simulators beside explicit tuning": ("agreement-sgd", "agreement-normalized"),
    "stories15M on stories": ("stories-sgd", "stories-normalized"),
    "Streams": ("stream-sgd", "stream-normalized"),
}
KINDS = ("paper-sgd", "full-sgd", "paper-normalized", "full-normalized")
ACCURACIES = {
    "Zero-shot: the query is trained on": [f"zero-{kind}" for kind in KINDS],
    "Four demonstrations": [f"{name}-{kind}" for kind in KINDS for name in ("few", "few-amazon")],
    "Layers and steps, SST-2": ["grid-paper-sgd", "grid-full-sgd"],
}


def write(done: Done) -> None:
    """Replace the measured part of the page."""
    lines: list[str] = []
    for title, names in PERPLEXITIES.items():
        lines += _section(title, [name for name in names if name in done], done, _perplexities)
    for title, names in ACCURACIES.items():
        lines += _section(title, [name for name in names if name in done], done, _accuracies)
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
    head, _, rest = old.partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def _section(title: str, names: Sequence[str], done: Done, table: Any) -> Iterator[str]:
    if not names:
        return
    yield f"## {title}"
    yield ""
    yield "```"
    for name in names:
        yield str(done[name]["command"])
    yield "```"
    yield ""
    yield from table({name: done[name]["result"] for name in names})
    yield ""


def _shown(column: str) -> str:
    """Return a column's name for readers: without the folder's first part."""
    kind, _, path = column.partition(":")
    if not path:
        return kind
    _, gradient, optimizer = path.split("-")
    steps = "plain" if optimizer == "sgd" else "normalised"
    return f"{kind}, {gradient}, {steps}"


def _perplexities(results: Mapping[str, Any]) -> list[str]:
    """A table with every column of all commands, and one that compares gains block by block."""
    fractions = sorted({row["train_fraction"] for result in results.values() for row in result["rows"]})
    found: dict[tuple[float, str], list[tuple[Mapping[str, Any], str]]] = {}
    columns: dict[str, None] = {}
    for result in results.values():
        for row in result["rows"]:
            for column in row["perplexity"]:
                columns[column] = None
                cells = found.setdefault((row["train_fraction"], column), [])
                if column != "before" or not cells:
                    cells.append((row, column))
    table = [["trained on", "blocks", "tokens scored", *map(_shown, columns)]]
    for fraction in fractions:
        row = next(row for result in results.values() for row in result["rows"] if row["train_fraction"] == fraction)
        cells = ["; ".join(_cell(*one) for one in found.get((fraction, column), [])) for column in columns]
        table.append([f"{fraction:g}", str(row["blocks"]), str(row["tokens"]), *cells])
    return [*report.table(table), *_comparisons(results)]


def _cell(row: Mapping[str, Any], column: str) -> str:
    if row["perplexity"][column] is None:
        return "not finite"
    low, high = row["interval"][column]
    text = f"{row['perplexity'][column]:.3f} ({low:.2f}-{high:.2f})"
    if column in row["rates"]:
        text += f" at {row['rates'][column]:g}"
    return text


def _comparisons(results: Mapping[str, Any]) -> list[str]:
    """Gains in nats a token, and what share of the full gradient's the paper's is; blocks are drawn again in pairs."""
    table = [["trained on", "steps", "gain, paper", "gain, full", "paper's of full's"]]
    for result in results.values():
        for row in result["rows"]:
            names = {_shown(name).split(", ")[1]: name for name in row["perplexity"] if name.startswith("tint:")}
            if not {"paper", "full"} <= {*names} or "before" not in row["perplexity"]:
                continue
            losses = [row["block_losses"][name] for name in ("before", names["paper"], names["full"])]
            if any(loss is None for column in losses for loss in column):
                continue
            tokens = row["tokens"] / row["blocks"]
            values = [[*block, tokens] for block in zip(*losses, strict=True)]
            cells = []
            for place in (1, 2):
                mean = sum(block[0] - block[place] for block in values) / row["tokens"]
                ends = interval(values, lambda sums, place=place: (sums[:, 0] - sums[:, place]) / sums[:, 3])
                cells.append(f"{mean:.4f} ({ends[0]:.4f} to {ends[1]:.4f})")
            before, paper, full = (sum(column) for column in losses)
            ends = interval(values, lambda sums: (sums[:, 0] - sums[:, 1]) / (sums[:, 0] - sums[:, 2]))
            cells.append(f"{(before - paper) / (before - full):.2f} ({ends[0]:.2f} to {ends[1]:.2f})")
            steps = _shown(names["full"]).split(", ")[2]
            table.append([f"{row['train_fraction']:g}", steps, *cells])
    if len(table) == 1:
        return []
    return ["", "Gains in nats a token, block by block (intervals of the pairs):", "", *report.table(table)]


def _accuracies(results: Mapping[str, Any]) -> list[str]:
    head = ["task", "shots", "format", "loss", "layers x steps", "seeds", "examples", "simulator"]
    names: dict[str, None] = {}
    for result in results.values():
        names |= dict.fromkeys(result["rows"][0]["accuracy"])
    table = [[*head, *names, "tint - before"]]
    for result in results.values():
        for row in result["rows"]:
            setting = [row["task"], str(row["shots"]), row["format"] or "-", row["loss"] or "-"]
            budget = [f"{row['layers']}x{row['steps']}", str(row["seeds"]), str(row["examples"])]
            cells = [_accuracy(row, name) for name in names]
            table.append([*setting, *budget, _shown(f"tint:{result['output']}")[6:], *cells, _difference(row)])
    return report.table(table)


def _accuracy(row: Mapping[str, Any], name: str) -> str:
    if name not in row["accuracy"]:
        return "-"
    low, high = row["interval"][name]
    text = f"{100 * row['accuracy'][name]:.0f} ({100 * low:.0f}-{100 * high:.0f})"
    if name in row["rates"]:
        text += " at " + ", ".join(dict.fromkeys(f"{rate:g}" for rate in row["rates"][name]))
    return text


def _difference(row: Mapping[str, Any]) -> str:
    """How many percent more are right after the update, with the interval of examples drawn again in pairs."""
    after, before = (
        [sum(each) / len(each) for each in zip(*row["right"][name], strict=True)] for name in ("tint", "before")
    )
    values = [[a - b] for a, b in zip(after, before, strict=True)]
    low, high = interval(values, lambda sums: 100 * sums[:, 0] / len(values))
    return f"{100 * sum(value for (value,) in values) / len(values):+.0f} ({low:+.0f} to {high:+.0f})"
