"""Fused execution: the same program by its algebra, without structural tensors."""

from tintc.runtime.fused.batches import run_fused
from tintc.runtime.fused.executor import FusedExecutor
from tintc.runtime.fused.plan import UPDATES, Plan, Sizes, make_plan

__all__ = ["UPDATES", "FusedExecutor", "Plan", "Sizes", "make_plan", "run_fused"]
