"""The arithmetic of fused forms that has a GPU kernel of its own, each beside the same in plain PyTorch."""
