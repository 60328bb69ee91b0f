"""Functions that mix tokens other than by attention, and how a model's own are made known (docs/mixers.md)."""

from tintc.frontend.mixers import convolution, recurrence, register

__all__ = ["convolution", "recurrence", "register"]
