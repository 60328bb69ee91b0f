"""Simulators: read and written as folders, executed, adapted, and shown to transformers as models."""
