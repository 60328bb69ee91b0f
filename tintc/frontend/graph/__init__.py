"""The auxiliary's graph: captured, evaluated, and asked questions."""
