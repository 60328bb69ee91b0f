"""What a simulator prints as: ten lines in a terminal, a small picture and a table in a notebook."""

from __future__ import annotations

import math
from html import escape

from tintc.lowering.emission.emit import specs
from tintc.runtime.model.structure import StructuralModel

STAGES = (
    ("forward again", "W' x", "predictions of the updated auxiliary"),
    ("descent", "W' = W - η Σ dy xᵀ", "the prefixes read the train tokens"),
    ("backward", "dx = Wᵀ dy", "through the updated layers"),
    ("forward", "y = W x", "tokens read the prefixes, which hold the weights"),
)
"""The stages of a pass, the last first: as they stand above each other in the simulator."""


def facts(sim: StructuralModel) -> dict[str, str]:
    """Return what was compiled, what it does with a text, its sizes, and how it runs."""
    config, layout, attributes = sim.config, sim.layout, sim.program.attributes
    steps = f"{config.n_steps} step{'' if config.n_steps == 1 else 's'}"
    if config.optimizer != "sgd":
        steps += f" ({config.optimizer})"
    count = sum(math.prod(spec.shape) for spec in specs(sim.program).values())
    return {
        "simulates": f"{config.provenance.get('source', 'an auxiliary model')}, {attributes['n_layers']} layers of "
        f"width {layout.d_aux}, {attributes['vocab_size']} tokens",
        "descent": f"{steps} on the top {attributes['n_update_layers']} layers, {config.descend}",
        "rate and loss": f"{config.inner_lr:g}, {config.loss}, semantics {config.semantics}",
        "differences": f"{config.difference}, step {config.fd_step:g}",
        "texts": f"up to {layout.max_length} tokens, of which {config.train_fraction:g} is trained on by default",
        "layout": f"S {layout.stack}, S' {layout.shards}, K {layout.n_prefixes} prefixes, D_sim {layout.d_sim}, "
        f"{layout.n_heads} heads",
        "size": f"{count:,} stored values, {len(sim.program.ops)} modules",
        "runs": f"{sim.executor} in {str(sim.dtype).removeprefix('torch.')} on {sim.device}",
    }


def described(sim: StructuralModel) -> str:
    """Return the facts in ten lines."""
    lines = (f"  {name}: {text}" for name, text in facts(sim).items())
    return "\n".join((f"{type(sim).__name__}(", *lines, ")"))


def described_in_html(sim: StructuralModel) -> str:
    """Return the facts as a table beside the stages of a pass, in whatever colours the page has."""
    cell = 'style="text-align:left;padding:1px 12px 1px 0"'
    box = 'style="border:1px solid;border-radius:6px;padding:3px 10px;text-align:center"'
    pale = 'style="text-align:left;padding-left:12px;opacity:.7"'
    stages: list[str] = []
    for name, formula, words in STAGES:
        cells = f"<td {cell}>{name}</td><td {box}><code>{escape(formula)}</code></td><td {pale}>{escape(words)}</td>"
        stages.append(f"<tr>{cells}</tr>")
    rows: list[str] = []
    for name, text in facts(sim).items():
        rows.append(f"<tr><th {cell}>{escape(name)}</th><td {cell}>{escape(text)}</td></tr>")
    picture = f'<table style="border-spacing:0 4px;border-collapse:separate">{"".join(stages)}</table>'
    title = f"<b>{escape(type(sim).__name__)}</b>: one pass, from the bottom"
    return f"<div>{title}{picture}<table>{''.join(rows)}</table></div>"
