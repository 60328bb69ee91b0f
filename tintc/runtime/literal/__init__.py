"""Literal execution: the simulator as a transformer, module by module, from its tensors."""

from tintc.runtime.literal.attention import TintAttention
from tintc.runtime.literal.blocks import GroupNorm, LossModule, PositionGate, Prefix
from tintc.runtime.literal.machine import Machine, SimModule
from tintc.runtime.literal.split import SplitOperation

__all__ = [
    "GroupNorm",
    "LossModule",
    "Machine",
    "PositionGate",
    "Prefix",
    "SimModule",
    "SplitOperation",
    "TintAttention",
]
