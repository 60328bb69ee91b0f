"""How many multiply-adds a plan takes: the products, which are nearly all of a run's time on long enough texts."""

from __future__ import annotations

from tintc.runtime.execution.fused.plan import ExecutionPlan


def multiply_adds(plan: ExecutionPlan) -> int:
    """Multiply-adds of all products of a plan, pending updates included; causal attention counts the keys it sees."""
    counts = plan.counts()
    return plan.sizes.batch * sum(op.multiply_adds(counts, *plan.operands(op)) for op in plan.ops)
