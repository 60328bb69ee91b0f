"""Explicit fine-tuning in plain PyTorch, with each approximation of a TinT simulator on or off: the oracle for people.

`tune` runs the FX graph that `torch.export` gives of a model, node by node, and differentiates it with autograd. It
shares no arithmetic with the compiler: neither the two dialects' interpreters nor the functions they use. What it takes
from the frontend is *where things lie*: which nodes of the graph are a norm or an activation, and which tensors (or
rows of them) are a layer's values, output, feed-forward weights or norm parameters.
"""

from tintc.reference.approximations import Approximations, Difference
from tintc.reference.tune import Tuned, tune

__all__ = ["Approximations", "Difference", "Tuned", "tune"]
