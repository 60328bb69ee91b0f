"""What a compiled folder holds: configuration, program, tensors, card; written in one step, read with clear errors."""
