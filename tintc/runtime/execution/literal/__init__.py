"""Literal execution: the simulator as a transformer, module by module, from its tensors."""

from tintc.runtime.execution.literal.attention import TintAttention
from tintc.runtime.execution.literal.blocks import GroupNorm, PositionGate, VocabularyMLP
from tintc.runtime.execution.literal.executor import LiteralExecutor, SimModule
from tintc.runtime.execution.literal.prefix import Prefix
from tintc.runtime.execution.literal.split import SplitOperation

__all__ = [
    "GroupNorm",
    "LiteralExecutor",
    "PositionGate",
    "Prefix",
    "SimModule",
    "SplitOperation",
    "TintAttention",
    "VocabularyMLP",
]
