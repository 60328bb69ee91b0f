"""Obstacles: kinds of layers that tintc does not support, in the words that a model's users have for them."""

from __future__ import annotations

from torch import Tensor
from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.captured_experts import CapturedExperts
from tintc.frontend.graph.evaluation import opname

GROUPED = frozenset({"grouped_mm", "_grouped_mm", "grouped_mm_fallback"})
"""Products of every token with the weights of its own expert."""
EXPERTS = "a mixture of experts that transformers' interface for experts does not compute"
STATE = "layers that carry a state from token to token (recurrent, state-space, linear attention or convolution)"


def obstacles(graph: CapturedGraph) -> tuple[str, ...]:
    """Return the obstacles in a graph, for a first line above the operations that no rule takes."""
    live = [node for node in graph.live if node.op == "call_function"]
    kinds: list[str] = []
    known = any(isinstance(node.target, CapturedExperts) for node in live)
    if not known and any(opname(node) in GROUPED or "expert" in graph.path(node) for node in live):
        kinds.append(EXPERTS)
    if any(_mixes_tokens(node) for node in live):
        kinds.append(STATE)
    return tuple(kinds)


def _mixes_tokens(node: Node) -> bool:
    """Return True if it sums over tokens other than attention does: a convolution, or a running sum of floats."""
    if opname(node) in ("conv1d", "convolution"):
        return True
    value = node.meta.get("val")
    return opname(node) == "cumsum" and isinstance(value, Tensor) and value.is_floating_point()
