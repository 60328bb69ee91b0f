"""Modules that make a step of summed gradients: zero sums, momentum, norms, and the step itself (construction.md,
section 17)."""
