"""The memory of a literal run, before it starts: of embeddings, of weights as prefixes, of attention's scores.

A literal run keeps whole embeddings ``[B, T_sim, D_sim]``: one for each slot of the table of saved ones, and one for
each tile of each version of the weights, since a tile is read off the embedding that carries it. One module at a time
has its scores ``[B, H, T_sim, T_sim]`` too. Where autograd records the run, every module keeps what it has made. The
factors are measured (`tests/runtime/execution/test_literal_memory.py`).
"""

from __future__ import annotations

import math

from tintc.ir.core import Program
from tintc.ir.layout import Layout
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.shared.linear_common import count_tiles
from tintc.lowering.emission.sharing import placement

WEIGHTS = ("linear", "norm", "experts")
WORKING = 12
"""Embeddings that a module has beside those that are kept."""
SCORES = 3
"""Tensors of a module's scores that are there together."""
RECORDED_EMBEDDINGS, RECORDED_SCORES = 2.0, 0.6
"""Of each, how many a recorded module keeps."""


def peak_bytes(program: Program, layout: Layout, batch: int, length: int, itemsize: int, recorded: bool) -> int:
    """Return the bytes that a literal run holds at its peak, beyond the simulator's own tensors. itemsize: of the
    dtype; recorded: by autograd."""
    positions = layout.n_prefixes + length
    embedding = batch * positions * layout.d_sim * itemsize
    scores = batch * layout.n_heads * positions**2 * itemsize
    logits = batch * length * int(program.attributes["vocab_size"]) * itemsize
    working = WORKING * embedding + SCORES * (scores + logits)
    if recorded:
        return working + int(_modules(program) * (RECORDED_EMBEDDINGS * embedding + RECORDED_SCORES * scores))
    results = [result.type for op in program.ops for result in op.results]
    tiles = sum(count_tiles(layout, kind) for kind in results if kind.kind in WEIGHTS)
    return working + (int(program.attributes.get("memory_slots", 0)) + tiles) * embedding


def _modules(program: Program) -> int:
    """Return how often a run applies a structural block."""
    placed = placement(program)
    ops = [op for op in program.ops if isinstance(op, SimOp)]
    return sum(math.prod(getattr(op, "tiles", ())) * max(1, len(placed.get(op, {}))) for op in ops)
