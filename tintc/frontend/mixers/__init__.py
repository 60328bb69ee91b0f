"""Mixers of tokens other than attention: which functions are taken for one, and what stands for them in a graph."""

from tintc.frontend.mixers.ops import convolution, recurrence
from tintc.frontend.mixers.registry import register

__all__ = ["convolution", "recurrence", "register"]
