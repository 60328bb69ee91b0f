"""What an op of the simulator's dialect is asked for."""
