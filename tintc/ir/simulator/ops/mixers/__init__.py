"""Ops that mix tokens otherwise than attention: recurrences and short convolutions."""
