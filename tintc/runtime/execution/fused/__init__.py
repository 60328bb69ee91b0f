"""Fused execution: the same program by its algebra, without structural tensors."""

from tintc.runtime.execution.fused.batches import run_fused
from tintc.runtime.execution.fused.executor import FusedExecutor
from tintc.runtime.execution.fused.plan import UPDATES, Plan, Sizes, make_plan

__all__ = ["UPDATES", "FusedExecutor", "Plan", "Sizes", "make_plan", "run_fused"]
