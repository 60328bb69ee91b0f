"""The sizes of a simulator for the page: its counts in the paper's table, and the layouts that it could have had."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from tintc.analysis.parameter_counts import count_parameters, module_counts
from tintc.analysis.report import sizes
from tintc.ir.core import Program
from tintc.lowering.passes.layout_candidates import survey
from tintc.lowering.passes.plan_layout import layout_of
from tintc.options import Options

DEAREST = 30.0
"""Layouts that cost more than this many times the chosen one are left out."""
PHASES = ("forward", "backward", "descent")
ROWS = {"linear": "linear", "norm": "norm", "attention": "self-attention", "activation": "activation", "gate": "gate"}
"""Kinds of modules in the paper's table, and what they are called there."""


def table_of(program: Program) -> list[dict[str, Any]]:
    """Return the paper's table for this simulator: parameters by kind of module and phase, the sum last."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(PHASES, 0))
    for row in module_counts(program):
        if row.table:
            counts[row.kind][row.phase] += row.table
    rows = [{"name": ROWS.get(kind, kind), **by_phase} for kind, by_phase in counts.items()]
    rows.append({"name": "all", **{phase: sum(row[phase] for row in rows) for phase in PHASES}})
    for row in rows:
        row["total"] = sum(row[phase] for phase in PHASES)
    return rows


def counts_of(program: Program) -> dict[str, Any]:
    """Return the three counts of parameters, the prefixes, and the sizes by name."""
    report = count_parameters(program)
    counts = {"table": report.table.total, "unrolled": report.unrolled, "unique": report.unique}
    return {"counts": counts, "prefixes": report.prefixes, "sizes": sizes(program)}


def candidates_of(program: Program, options: Options) -> list[dict[str, Any]]:
    """Return the layouts that no condition forbids, with what each costs beside the one that was taken."""
    taken = layout_of(program)
    feasible = survey(program, options, taken.max_length).feasible
    same = [one for one in feasible if one.layout == taken]
    if not same:
        return []
    rows: list[dict[str, Any]] = []
    for one in feasible:
        layout = one.layout
        cost = one.cost / same[0].cost
        if cost <= DEAREST:
            rows.append(
                {
                    "S": layout.stack,
                    "shards": layout.shards,
                    "K": layout.n_prefixes,
                    "heads": layout.n_heads,
                    "D_sim": layout.d_sim,
                    "cost": cost,
                    "chosen": layout == taken,
                }
            )
    return rows
