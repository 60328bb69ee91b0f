"""`TintForCausalLM`: a simulator as transformers and PyTorch know models."""
