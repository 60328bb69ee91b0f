"""Running a simulator's program: literally, as the transformer it is, or fused, by its algebra."""
