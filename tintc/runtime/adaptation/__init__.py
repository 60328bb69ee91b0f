"""Weights that a text has updated: kept, used for other texts, saved, exported."""
