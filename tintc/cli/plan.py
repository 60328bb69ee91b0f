"""`tintc plan`: the layouts that a model's simulator could have, and the one that compiling takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tintc.analysis.parameter_counts import count_parameters
from tintc.cli.console import paragraph, print_json, print_rows, print_table, silence_libraries, stages
from tintc.cli.legend import print_legend
from tintc.cli.pictures import check_plot
from tintc.cli.plan_plot import draw
from tintc.ir.core import Program
from tintc.lowering.passes.layout_candidates import Candidate, Survey, survey
from tintc.lowering.passes.plan_layout import plan_layout
from tintc.options import Options
from tintc.stages import import_auxiliary, load_source, lower_to_modules

COLUMNS = {
    "stack": "S",
    "shards": "S'",
    "n_prefixes": "K",
    "head_width": "d_h",
    "heads": "heads",
    "d_sim": "D_sim",
    "padding": "padding",
    "text_left": "text\nleft",
    "table": "table,\n1e6",
    "unrolled": "unrolled,\n1e6",
    "unique": "unique,\n1e6",
    "work": "work,\n1e12",
    "cost": "cost",
}
"""Fields of a row and their headings."""


def plan_model(
    model: str, options: dict[str, Any], png: Path | None, every: bool, trusted: bool, as_json: bool
) -> None:
    """Print the trade-off; with `every`, all feasible layouts and not only those that no other beats.

    trusted: whether Python code that comes with the model may be run.
    """
    silence_libraries()
    chosen = Options(**options)
    if png is not None:
        check_plot(png)
    with stages():
        source = load_source(model, chosen, values=False, trust_remote_code=trusted)
        program = lower_to_modules(import_auxiliary(source, chosen).program, chosen)
        layouts = survey(program, chosen, source.max_length)
        taken = layouts.chosen
        listed = layouts.frontier()
        if every:
            listed = layouts.feasible
        if taken not in listed:
            listed = [taken, *listed]
        rows = [describe(program, chosen, candidate, taken) for candidate in listed]
        if png is not None:
            draw(layouts, png, model)
    shown = {
        "d_aux": taken.layout.d_aux,
        "max_length": taken.layout.max_length,
        "semantics": chosen.semantics,
        "chosen": rows[listed.index(taken)],
        "reason": explain(layouts, chosen),
    }
    if as_json:
        print_json(shown | {"candidates": rows, "refused": [refusal(candidate) for candidate in layouts.refused]})
        return
    print_rows(f"Layouts for {model}", list(COLUMNS.values()), map(_cells, rows), bold=listed.index(taken))
    print_table("", {"chosen": paragraph(shown["reason"]), "no layouts": paragraph(summarise(layouts.refused))})
    print_legend(heading.replace("\n", " ").partition(",")[0] for heading in COLUMNS.values())


def describe(program: Program, options: Options, candidate: Candidate, taken: Candidate) -> dict[str, Any]:
    """Return one row.

    padding: share of a slot that is padding; text_left: positions for text in a simulator that is as long as the
    longest text; table, unrolled, unique: the three parameter counts; work: estimated multiply-adds of one literal run
    on the longest text; cost: relative to the layout that is taken.
    """
    layout = candidate.layout
    fixed = replace(options, stack=layout.stack, shards=layout.shards, head_width=layout.d_h, heads=layout.n_heads)
    counts = count_parameters(plan_layout(program, fixed, layout.max_length))
    return {
        "stack": layout.stack,
        "shards": layout.shards,
        "n_prefixes": layout.n_prefixes,
        "head_width": layout.d_h,
        "heads": layout.n_heads,
        "d_sim": layout.d_sim,
        "padding": candidate.padding,
        "text_left": max(0, layout.max_length - layout.n_prefixes),
        "table": counts.table.total,
        "unrolled": counts.unrolled,
        "unique": counts.unique,
        "work": candidate.work,
        "cost": candidate.cost / taken.cost,
        "chosen": candidate is taken,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    shown = row | {name: f"{row[name] / 1e6:,.1f}" for name in ("table", "unrolled", "unique")}
    shown |= {"padding": f"{row['padding']:.1%}", "work": f"{row['work'] / 1e12:.4g}", "cost": f"{row['cost']:.3f}"}
    return [str(shown[name]) for name in COLUMNS]


def explain(layouts: Survey, options: Options) -> str:
    """Return why the chosen layout was chosen, in a sentence."""
    taken = layouts.chosen
    layout = taken.layout
    others = sorted((c for c in layouts.feasible if c is not taken), key=lambda candidate: candidate.cost)
    fixed = any((options.stack, options.shards, options.head_width, options.heads))
    among = f"the cheapest of {len(layouts.feasible)} feasible layouts"
    if fixed:
        among += " with what the options fix"
    if others:
        second = others[0]
        percent = 100 * (second.cost / taken.cost - 1)
        among += f" (the next, S = {second.layout.stack}, S' = {second.layout.shards}, costs {percent:.1f} % more)"
    slots = taken.demands.slots(layout)
    needs = f"{slots} slots of width {layout.pitch} are read together"
    rows = f"{layout.main_heads} heads hold weight rows"
    if taken.demands.has_bias:
        rows += f" and {layout.shards} the bias"
    return (
        f"S = {layout.stack}, S' = {layout.shards} is {among}: K = {layout.n_prefixes} prefixes, and D_sim = "
        f"{layout.d_sim}, in which {needs} and {rows}."
    )


def refusal(candidate: Candidate) -> dict[str, Any]:
    """Return the layout of a candidate, and the conditions that it breaks."""
    layout = candidate.layout
    return {"stack": layout.stack, "shards": layout.shards, "conditions": list(candidate.broken)}


def summarise(refused: Sequence[Candidate]) -> str:
    """Return every condition that some pair breaks, with the first such pair."""
    groups: dict[str, list[tuple[Candidate, str]]] = {}
    for candidate in refused:
        for sentence in candidate.broken:
            groups.setdefault(re.sub(r"\d+", "n", sentence), []).append((candidate, sentence))
    parts = []
    for members in groups.values():
        candidate, sentence = members[0]
        pairs = ""
        if len(members) > 1:
            pairs = f"{len(members)} pairs, such as "
        parts.append(f"{pairs}S = {candidate.layout.stack}, S' = {candidate.layout.shards}: {sentence}")
    return ". ".join(parts) + "." if parts else "none"
