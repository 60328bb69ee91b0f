"""The decisions of fused execution before it runs; nothing in them depends on data.

- Dead code: ops that no wanted output needs. A value that only train tokens need (the loss, backward, descent, and
  the forward pass before an update) is computed up to the step's last train token, which is all of it by causality.
  In a step without train tokens, every descent is the identity and what feeds it is dropped.
- Layers below the updated ones run once: the compiler has merged them.
- Updates are lazy or materialised, per layer, by a cost model.
- Products that share an input (q, k and v; gate and up) can be taken as one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from tintc.analysis.capture_points import point_of, shown_by
from tintc.errors import OptionError
from tintc.ir.core import Program, Value
from tintc.ir.liveness import last_reads
from tintc.ir.simulator import SimOp
from tintc.runtime.execution.fused.plan import ExecutionPlan, PackedProducts, Sizes

UPDATES = ("auto", "lazy", "materialised")
WRITE_COST = 24
"""Multiply-adds in whose time one entry of a weight matrix is read and written again: 10 to 30, measured with AVX2."""


def make_plan(program: Program, outputs: tuple[str, ...], sizes: Sizes, update: str = "auto") -> ExecutionPlan:
    """Return the plan for the named outputs and capture points; update ``auto``, ``lazy`` or ``materialised``."""
    if update not in UPDATES:
        raise OptionError(f"The update {update!r} is unknown; choose one of {', '.join(UPDATES)}.")
    all_ops = [op for op in program.ops if isinstance(op, SimOp)]
    alias = _untrained(all_ops, sizes)
    points = {label: point_of(program, label) for label in outputs}
    plan = ExecutionPlan(sizes, [], {}, {}, alias, known=_known(all_ops), shown=shown_by(points))
    plan.outputs = {label: plan.resolve(point.value) for label, point in points.items() if not point.show}
    needs = {plan.resolve(point.value): sizes.length for point in points.values()}
    for op in reversed(all_ops):
        wanted = [needs[result] for result in op.results if result in needs]
        if not wanted or op.results[0] in alias:
            continue
        plan.ops.append(op)
        plan.lengths[op] = max(wanted)
        reads = sizes.read(op, plan.lengths[op])
        for operand in plan.operands(op):
            needs[operand] = max(needs.get(operand, 0), reads)
    plan.ops.reverse()
    plan.last = last_reads(plan.ops, plan.outputs.values(), plan.operands)
    plan.lazy = _lazy(plan, update)
    plan.packed = _packed_products(plan)
    return plan


def _untrained(ops: list[SimOp], sizes: Sizes) -> dict[Value, Value]:
    """Return, for every descent of a step without train tokens, the weights that its result equals."""
    alias: dict[Value, Value] = {}
    for op in ops:
        before = op.identity_operand()
        if before is not None and sizes.train_end(op.step) == 0:
            alias[op.result] = before
    return alias


def _known(ops: list[SimOp]) -> dict[SimOp, Value]:
    """Return the values of earlier ops that an op's fused form starts from rather than computing them again."""
    computed: dict[Hashable, Value] = {}
    known: dict[SimOp, Value] = {}
    for op in ops:
        if op.needs_activation_key() in computed:
            known[op] = computed[op.needs_activation_key()]
        if op.activation_key() is not None:
            computed.setdefault(op.activation_key(), op.result)
    return known


def _packed_products(plan: ExecutionPlan) -> dict[SimOp, PackedProducts]:
    """Return two or more products of one input, over as many positions, with stored weights, for each of their ops.

    Pending updates are added to each product alone.
    """
    given = {start.layer for start in plan.sizes.starts}
    layers: dict[Value, str] = {}
    groups: dict[Hashable, dict[str, SimOp]] = {}
    for op in plan.ops:
        name = op.stored_weight()
        if op in plan.lazy:
            name = layers.get(plan.operands(op)[0])
        if name is not None and name not in given:
            layers[op.result] = name
        if op.SHARES_INPUT and plan.operands(op)[0] in layers:
            weights, x = plan.operands(op)
            together = groups.setdefault((x, plan.lengths[op], "bias" in weights.type.parts), {})
            together.setdefault(layers[weights], op)
    packed = [PackedProducts(tuple(ops.values()), tuple(ops)) for ops in groups.values() if len(ops) > 1]
    return {op: group for group in packed for op in group.ops}


def _lazy(plan: ExecutionPlan, update: str) -> set[SimOp]:
    """Return the descents to leave pending, all of one layer alike: those too of one that has pending updates."""
    carrying = {start.layer for start in plan.sizes.starts if start.pending}
    chains: dict[str, list[SimOp]] = {}
    for op in plan.ops:
        deferral = op.deferral()
        if deferral is not None:
            chains.setdefault(deferral.layer, []).append(op)
    lazy: set[SimOp] = set()
    for layer, chain in chains.items():
        if update == "lazy" or layer in carrying or _prefers_lazy(plan, chain, update):
            lazy.update(chain)
    return lazy


def _prefers_lazy(plan: ExecutionPlan, chain: list[SimOp], update: str) -> bool:
    """Return whether pending updates take fewer multiply-adds per example (construction.md, section 13).

    Lazy: every later product with the layer costs ``n t (din + dout)`` more for each pending step. Materialised: each
    step costs ``t din dout``, and the weights are read and written once per example.
    """
    deferral = chain[0].deferral()
    if deferral is not None and deferral.always:
        return True
    if update != "auto":
        return False
    dout, din = chain[0].result.type.dims
    lazy = materialised = 0
    for index, op in enumerate(chain):
        carriers = {later.result for later in chain[index:]}
        t = plan.sizes.train_end(op.step)
        lazy += sum(n * t * (din + dout) for n in _uses(plan, carriers))
        materialised += dout * din * (t + WRITE_COST)
    return lazy < materialised


def _uses(plan: ExecutionPlan, weights: set[Value]) -> Iterable[int]:
    """Yield the number of positions of every product with one of these weights."""
    for op in plan.ops:
        factor = op.weight_operand()
        if factor is not None and plan.resolve(factor) in weights:
            yield plan.lengths[op]
