"""From a program of the auxiliary to one of the simulator, by passes and rules, and from that to its tensors."""
