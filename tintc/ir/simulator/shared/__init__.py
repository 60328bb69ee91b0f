"""Pieces that the templates of several ops share."""
