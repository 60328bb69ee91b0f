"""Fused execution: the same program by its algebra, without structural tensors."""

from tintc.runtime.execution.fused.batches import run_fused
from tintc.runtime.execution.fused.executor import FusedExecutor
from tintc.runtime.execution.fused.plan import UPDATES, ExecutionPlan, Sizes, make_plan

__all__ = ["UPDATES", "ExecutionPlan", "FusedExecutor", "Sizes", "make_plan", "run_fused"]
