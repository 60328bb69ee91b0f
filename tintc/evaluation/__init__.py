"""Scoring texts and tasks before and after the update."""
