"""What the page says of a text: its coloured tokens, and which train tokens have changed which predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tintc.report.charts import visible
from tintc.report.teaching import strongest
from tintc.report.text import TextRun

PAIRS = 8
"""Pairs of tokens that are named."""
ALL = "all updated layers together"
CONTEXT = 3
"""Tokens in front of a token that is named."""


def token_views(run: TextRun, clickable: bool) -> list[dict[str, Any]]:
    """Return the tokens of a text as the template takes them, coloured by what the update has gained or lost."""
    gain = run.gain
    most = float(gain[1:].abs().quantile(0.98)) or 1.0
    views: list[dict[str, Any]] = []
    for place, text in enumerate(run.tokens):
        colour = "transparent"
        title = "the first token: nothing predicts it"
        if place:
            lost, won = float(run.before[place]), float(run.after[place])
            size = min(1.0, abs(lost - won) / most)
            name = "gain" if won < lost else "loss"
            colour = f"rgb(var(--{name}) / {0.75 * size:.2f})"
            title = f"loss {lost:.3f} before, {won:.3f} after"
        trained = place < run.train
        marked = place if clickable and not trained else None
        kind = "train" if trained else "scored"
        views.append({"text": text, "kind": kind, "colour": colour, "title": title, "place": marked})
    return views


def teaching_grids(shares: Mapping[int, Tensor], run: TextRun) -> dict[str, Tensor]:
    """Return for every layer, and for all together, ``[scored tokens, train tokens]``: rows are the tokens that were
    predicted, each by the output at the token before it."""
    grids = {f"layer {layer}": _scored(own, run) for layer, own in shares.items() if layer >= 0}
    if -1 in shares:
        grids["outside the layers"] = _scored(shares[-1], run)
    return {ALL: torch.stack(list(grids.values())).sum(0), **grids}


def _scored(shares: Tensor, run: TextRun) -> Tensor:
    return shares[run.train - 1 : len(run.ids) - 1, : run.train]


def named_pairs(total: Tensor, run: TextRun) -> list[dict[str, Any]]:
    """Return the pairs of the largest shares as the template takes them. total: as `teaching_grids` has it."""
    pairs: list[dict[str, Any]] = []
    for row, teacher, share in strongest(total, 0, PAIRS):
        place = row + run.train
        whole = float(total[row].sum())
        pairs.append(
            {
                "token": visible(run.tokens[place]),
                "before": context(run.tokens, place),
                "teacher": visible(run.tokens[teacher]),
                "context": context(run.tokens, teacher),
                "next": visible(run.tokens[teacher + 1]),
                "part": share / whole if whole else 0.0,
                "loss_before": float(run.before[place]),
                "loss_after": float(run.after[place]),
            }
        )
    return pairs


def context(tokens: list[str], place: int) -> str:
    """Return the tokens in front of one, on a line."""
    text = "".join(tokens[max(0, place - CONTEXT) : place]).replace("\n", " ")
    text = f"{text} " if tokens[place].startswith((" ", "\n")) else text
    return f"... {text}" if place > CONTEXT else text


def shares_by_place(total: Tensor, run: TextRun) -> dict[int, list[float]]:
    """Return the shares of the train tokens for every token that was predicted, by its place in the text."""
    return {row + run.train: [float(f"{x:.3g}") for x in shares] for row, shares in enumerate(total.tolist())}
