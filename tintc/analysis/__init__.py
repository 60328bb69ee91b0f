"""Facts that are read off a program: capture points, roles of heads, parameter counts, reports."""
