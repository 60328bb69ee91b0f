"""The sweep over every causal language model that transformers registers (``make sweep``)."""
