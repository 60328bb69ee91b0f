"""What can be told from a program: capture points, roles of heads, parameter counts, reports."""
