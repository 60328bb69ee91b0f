"""The ten lines that a simulator prints as."""

from __future__ import annotations

import math

from tintc.lowering.emission.emit import specs
from tintc.runtime.model.structure import StructuralModel


def described(sim: StructuralModel) -> str:
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
