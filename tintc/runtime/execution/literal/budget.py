"""The memory of a literal run, before it starts: of embeddings, of weights as prefixes, of attention's scores; and
`run_literal`, which runs as much of a batch at a time as memory takes.

A literal run keeps whole embeddings ``[B, T_sim, D_sim]``: one for each slot of the table of saved ones, and one for
each tile of each version of the weights, since a tile is read off the embedding that carries it. One module at a time
has its scores ``[B, H, T_sim, T_sim]`` too. Where autograd records the run, every module keeps what it has made. The
factors are measured (`tests/runtime/execution/test_literal_memory.py`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tintc.errors import InputError
from tintc.ir.core import Program
from tintc.ir.inputs import Inputs
from tintc.ir.layout import Layout
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.shared.linear_common import count_tiles
from tintc.lowering.emission.sharing import placement
from tintc.runtime.execution.literal.executor import LiteralExecutor
from tintc.runtime.execution.memory import at_a_time, in_parts, most_bytes, refusal
from tintc.runtime.execution.rates import Rates
from tintc.runtime.execution.simulator import Simulator

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


def run_literal(
    model: Simulator, inputs: Inputs, rates: Rates | None, outputs: tuple[str, ...], max_batch: int | str | None
) -> dict[str, Tensor]:
    """Return the named outputs for a batch; raise `InputError`, which says what would fit, if the batch does not."""
    batch, length = inputs.shape
    limit = most_bytes(model)

    def fits(count: int) -> bool:
        return _need(model, model.program, count, length) <= limit

    def refused(count: int) -> InputError:
        return _refusal(model, model.program, count, length, limit, parts=True)

    count = at_a_time(batch, max_batch, fits, refused)

    def run(rows: Inputs, own: Rates | None) -> dict[str, Tensor]:
        return LiteralExecutor(model, rows, own).run(outputs)

    return in_parts(model, inputs, rates, count, run, halves=max_batch == "auto")


def check_fits(model: Simulator, program: Program, inputs: Inputs) -> None:
    """Raise `InputError`, which says what would fit, if a batch that cannot be cut does not."""
    batch, length = inputs.shape
    limit = most_bytes(model)
    if _need(model, program, batch, length) > limit:
        raise _refusal(model, program, batch, length, limit, parts=False)


def _need(model: Simulator, program: Program, batch: int, length: int) -> int:
    return peak_bytes(program, model.layout, batch, length, model.dtype.itemsize, torch.is_grad_enabled())


def _refusal(model: Simulator, program: Program, batch: int, length: int, limit: int, parts: bool) -> InputError:
    need = _need(model, program, batch, length)
    return refusal(
        batch,
        length,
        need,
        limit,
        lambda count, shorter: _need(model, program, count, shorter) <= limit,
        parts,
        torch.is_grad_enabled(),
    )
