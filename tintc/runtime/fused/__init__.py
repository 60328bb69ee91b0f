"""Fused execution: the same program by its algebra, without structural tensors."""

from tintc.runtime.fused.executor import FusedExecutor
from tintc.runtime.fused.plan import UPDATES, Plan, make_plan

__all__ = ["UPDATES", "FusedExecutor", "Plan", "make_plan"]
