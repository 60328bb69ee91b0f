"""The interface of an op of the simulator's dialect: five small bases."""
