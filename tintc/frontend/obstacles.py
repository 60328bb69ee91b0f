"""What a decoder that is refused has and tintc does not support, in the words that its users have for it."""

from __future__ import annotations

from torch import Tensor
from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname

GROUPED = frozenset({"grouped_mm", "_grouped_mm", "grouped_mm_fallback"})
"""Products of every token with the weights of its own expert."""
EXPERTS = "a mixture of experts"
STATE = "layers that carry a state from token to token (recurrent, state-space, linear attention or convolution)"


def obstacles(graph: CapturedGraph) -> tuple[str, ...]:
    """Kinds of layers, for a first line above the operations that no rule takes; empty if it is none of the known."""
    live = [node for node in graph.live if node.op == "call_function"]
    found = []
    if any(opname(node) in GROUPED or "expert" in graph.path(node) for node in live):
        found.append(EXPERTS)
    if any(_mixes_tokens(node) for node in live):
        found.append(STATE)
    return tuple(found)


def _mixes_tokens(node: Node) -> bool:
    """Whether it sums over tokens other than attention does: a convolution, or a running sum of floats."""
    value = node.meta.get("val")
    runs = opname(node) == "cumsum" and isinstance(value, Tensor) and value.is_floating_point()
    return runs or opname(node) in ("conv1d", "convolution")
