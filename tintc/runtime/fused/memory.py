"""How much memory a plan takes, before it runs: values by their live ranges, updates, and the largest temporaries."""

from __future__ import annotations

from tintc.ir import simulator as sim
from tintc.ir.core import Value
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.attention_backward import ROWS
from tintc.ir.simulator.loss_gradient import CHUNK
from tintc.runtime.fused.plan import Plan, Sizes

FULL = 4
"""Bytes of the fp32 numbers in which finite differences run whatever the dtype."""


def peak_bytes(plan: Plan, itemsize: int, kept: bool = False) -> int:
    """Bytes a run of `plan` holds at its peak, beyond the simulator's own tensors. itemsize: of the dtype; kept:
    autograd records the run, so that nothing is let go."""
    batch, held = plan.sizes.batch, _masks(plan.sizes)
    peak, updates, size = held, _kept_by_updates(plan), {}
    for op in plan.ops:
        for result in op.results:
            size[result] = itemsize * _entries(plan, op, result)
            held += size[result]
        temporary = batch * _temporary(plan, op, itemsize)
        peak = max(peak, held + temporary)
        if kept:
            held += temporary // 2
            continue
        for value in plan.last[op]:
            if value not in updates:
                held -= size[value]
    return max(peak, held)


def _masks(sizes: Sizes) -> int:
    """Who sees whom, as booleans, of the whole text and of its train tokens, where it is not just the earlier ones."""
    return sizes.batch * (sizes.length**2 + sizes.train**2) if sizes.masked else 0


def _entries(plan: Plan, op: SimOp, result: Value) -> int:
    """Entries of a result, all examples together; stored weights are views, a lazy update is its dY."""
    batch = plan.sizes.batch
    if isinstance(op, sim.StoredWeights):
        return 0
    if result.type.kind == "norm":
        return batch * result.type.width
    if result.type.kind == "linear":
        dout, din = result.type.dims
        return batch * (plan.sizes.train * dout if op in plan.lazy else dout * din)
    return batch * plan.lengths[op] * result.type.width


def _kept_by_updates(plan: Plan) -> set[Value]:
    """A pending update keeps its dY and X to the end of the run."""
    return {value for op in plan.lazy for value in (op.operands[2], op.results[0])}


def _temporary(plan: Plan, op: SimOp, itemsize: int) -> int:
    """Bytes per example of what exists only while `op` runs."""
    n, batch = plan.lengths[op], plan.sizes.batch
    width = op.results[0].type.width
    match op:
        case sim.ActivationBackward() | sim.GateBackward() | sim.NormBackward():
            return 4 * FULL * n * width
        case sim.AttentionBackward():
            return 2 * itemsize * op.n_heads * min(n, ROWS) * n
        case sim.LossGradient():
            return -(-2 * itemsize * min(n * batch, CHUNK) * plan.sizes.vocab // batch)
        case sim.LinearForward():
            return itemsize * n * plan.sizes.train
    return itemsize * n * width
