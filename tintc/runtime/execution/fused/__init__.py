"""Fused execution: the same program by its algebra, without structural tensors."""
