"""How many multiply-adds a plan takes: the products, which are nearly all of a run's time on long enough texts."""

from __future__ import annotations

from tintc.runtime.execution.fused.plan import Plan


def multiply_adds(plan: Plan) -> int:
    """Multiply-adds of all products of a plan, pending updates included; causal attention counts the keys it sees."""
    costs = plan.cost_model()
    return plan.sizes.batch * sum(op.multiply_adds(costs, *plan.operands(op)) for op in plan.ops)
