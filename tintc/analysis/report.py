"""The report of `inspect` on a simulator, as plain JSON values: its options and sizes, and its parameters."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from typing import Any

from tintc.analysis.parameter_counts import count_parameters, module_counts
from tintc.analysis.published import PUBLISHED, Published
from tintc.ir.core import Program
from tintc.lowering.emission.emit import specs
from tintc.lowering.passes.plan_layout import layout_of
from tintc.options import Options

OPTIONS = (*Options().recorded(), "train_fraction")
"""Fields of `TintConfig` that the summary shows."""


def sizes(program: Program) -> dict[str, Any]:
    """Return the sizes of a planned simulator program, by the names of the table in construction.md, section 1."""
    layout = layout_of(program)
    return {
        "d_aux": layout.d_aux,
        "n_layers": program.attributes["n_layers"],
        "n_update_layers": program.attributes["n_update_layers"],
        "vocab_size": program.attributes["vocab_size"],
        "max_length": layout.max_length,
        "d_sim": layout.d_sim,
        "heads": layout.n_heads,
        "head_width": layout.d_h,
        "stack": layout.stack,
        "shards": layout.shards,
        "n_prefixes": layout.n_prefixes,
        "sim_seq_len": layout.sim_seq_len,
        "memory_slots": program.attributes["memory_slots"],
    }


def summary(program: Program) -> dict[str, Any]:
    """Return the sizes, and the number of modules of every kind in the program."""
    kinds = Counter(op.opname for op in program.ops)
    return sizes(program) | {"modules": dict(sorted(kinds.items()))}


def parameter_report(program: Program) -> dict[str, Any]:
    """Return the three counts (construction.md, section 11), the prefixes and the layout.

    modules: the three counts of every kind of module, layer (-1 outside the layers, None for tensors that several
    layers share) and phase; paper: its published totals for OPT and the table's for the same shapes.

    parameters: ``table`` by the paper's table, ``unrolled`` with structural tensors for every module, ``unique`` as
    stored; table_by_phase splits the first; prefixes: embeddings over all weight tiles; d_sim, stack (S), shards (S'),
    n_prefixes (K of one module), heads (H_sim).
    """
    report = count_parameters(program)
    table = report.table
    layout = report.layout
    return {
        "parameters": {"table": table.total, "unrolled": report.unrolled, "unique": report.unique},
        "table_by_phase": {"forward": table.forward, "backward": table.backward, "descent": table.descent},
        "unique_by_kind": _by_kind(program),
        "modules": [asdict(row) for row in module_counts(program)],
        "paper": [_published(row) for row in PUBLISHED],
        "prefixes": report.prefixes,
        "d_sim": layout.d_sim,
        "stack": layout.stack,
        "shards": layout.shards,
        "n_prefixes": layout.n_prefixes,
        "heads": layout.n_heads,
        "head_width": layout.d_h,
        "sim_seq_len": layout.sim_seq_len,
    }


def _published(row: Published) -> dict[str, Any]:
    names = ("forward", "backward", "descent", "total")
    table = row.table
    return {
        "name": row.name,
        "published": dict(zip(names, row.totals, strict=True)),
        "table": {name: getattr(table, name) / 1e9 for name in names},
    }


def _by_kind(program: Program) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, spec in specs(program).items():
        counts[name.partition(".")[0]] += math.prod(spec.shape)
    return dict(sorted(counts.items()))
