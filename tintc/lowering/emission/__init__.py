"""From a simulator's program to its tensors."""
