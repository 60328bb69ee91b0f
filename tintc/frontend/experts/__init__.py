"""Mixtures of experts in an exported graph: their two layers, what is between them, and the router before them."""
