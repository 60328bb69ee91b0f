"""Literal execution: the simulator as a transformer, module by module, from its tensors."""
