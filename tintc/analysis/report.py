"""What `inspect` says about a simulator, as plain JSON values: its options and sizes, and its parameters."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from tintc.analysis.parameter_counts import count_parameters, module_counts
from tintc.analysis.published import PUBLISHED, Published
from tintc.errors import ArtefactError
from tintc.ir.core import Program
from tintc.lowering.emission.emit import specs
from tintc.lowering.passes.plan_layout import layout_of

if TYPE_CHECKING:
    from tintc.runtime.model.causal_lm import TintForCausalLM

OPTIONS = (
    "n_steps",
    "n_update_layers",
    "inner_lr",
    "loss",
    "descend",
    "semantics",
    "fd_scheme",
    "fd_step",
    "reuse",
    "linear_attention",
    "train_fraction",
)
"""Fields of `TintConfig` that the summary shows."""


def sizes(program: Program) -> dict[str, Any]:
    """Sizes of a planned simulator program, by the names of the table in construction.md, section 1."""
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
    """Sizes, and how many modules of which kind the program has."""
    kinds = Counter(op.opname for op in program.ops)
    return sizes(program) | {"modules": dict(sorted(kinds.items()))}


def described(sim: TintForCausalLM) -> str:
    """Return ten lines: what was compiled, what it does with a text, its sizes, how it runs."""
    config, layout, attributes = sim.config, sim.layout, sim.program.attributes
    steps = f"{config.n_steps} step{'' if config.n_steps == 1 else 's'}"
    count = sum(math.prod(spec.shape) for spec in specs(sim.program).values())
    lines = (
        f"simulates: {config.provenance.get('source', 'an auxiliary model')}, {attributes['n_layers']} layers of width "
        f"{layout.d_aux}, {attributes['vocab_size']} tokens",
        f"descent: {steps} on the top {attributes['n_update_layers']} layers, {config.descend}",
        f"rate and loss: {config.inner_lr:g}, {config.loss}, semantics {config.semantics}",
        f"differences: {config.fd_scheme}, step {config.fd_step:g}",
        f"texts: up to {layout.max_length} tokens, of which {config.train_fraction:g} is trained on by default",
        f"layout: S {layout.stack}, S' {layout.shards}, K {layout.n_prefixes} prefixes, D_sim {layout.d_sim}, "
        f"{layout.n_heads} heads",
        f"size: {count:,} stored values, {len(sim.program.ops)} modules",
        f"runs: {sim.executor} in {str(sim.dtype).removeprefix('torch.')} on {sim.device}",
    )
    return "\n".join((f"{type(sim).__name__}(", *(f"  {line}" for line in lines), ")"))


def parameter_report(program: Program) -> dict[str, Any]:
    """The three counts (construction.md, section 11), the prefixes and the layout.

    modules: the three counts of every kind of module, layer (-1 outside the layers, None for tensors that several
    layers share) and phase; paper: its published totals for OPT and the table's for the same shapes.

    parameters: ``table`` by the paper's table, ``unrolled`` with structural tensors for every module, ``unique`` as
    stored; table_by_phase splits the first; prefixes: embeddings over all weight tiles; d_sim, stack (S), shards (S'),
    n_prefixes (K of one module), heads (H_sim).
    """
    report = count_parameters(program)
    table, layout = report.table, report.layout
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
    names, table = ("forward", "backward", "descent", "total"), row.table
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


def check_file(path: str | os.PathLike[str], program: Program, edited: bool) -> None:
    """Raise `ArtefactError` unless a folder's files hold exactly the tensors the program needs, by their headers.

    edited: the program's text was edited after compiling, and may have no use for some of them any more.
    """
    found: dict[str, tuple[int, ...]] = {}
    try:
        for file in sorted(Path(path).glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"{path} has a damaged weight file ({error}); compile the model again.") from error
    wanted = {name: spec.shape for name, spec in specs(program).items()}
    checked = wanted.keys() if edited else found.keys() | wanted.keys()
    wrong = sorted(name for name in checked if found.get(name) != wanted.get(name))
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ArtefactError(
            f"{path} does not fit its program: {', '.join(wrong[:3])}{more} are missing, unknown or of another shape. "
            "Compile the model again."
        )
