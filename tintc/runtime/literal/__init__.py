"""Literal execution: the simulator as a transformer, module by module, from its tensors."""

from tintc.runtime.literal.attention import TintAttention
from tintc.runtime.literal.blocks import GroupNorm, PositionGate, Prefix, VocabularyMLP
from tintc.runtime.literal.machine import Machine, SimModule
from tintc.runtime.literal.split import SplitOperation

__all__ = [
    "GroupNorm",
    "Machine",
    "PositionGate",
    "Prefix",
    "SimModule",
    "SplitOperation",
    "TintAttention",
    "VocabularyMLP",
]
