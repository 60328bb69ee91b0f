"""Obstacles: kinds of layers that tintc does not support, in the words that a model's users have for them."""

from __future__ import annotations

from torch import Tensor
from torch.fx import Node

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.captured_experts import CapturedExperts
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.node_queries import PROBES

GROUPED = frozenset({"grouped_mm", "_grouped_mm", "grouped_mm_fallback"})
"""Products of every token with the weights of its own expert."""
EXPERTS = "a mixture of experts that transformers' interface for experts does not compute"
STREAMS = "several residual streams, which every token mixes by weights that it computes"
DYNAMIC_MASK = "attention whose mask is computed from what the tokens are"
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
    elif any(_mixes_streams(graph, node) for node in live):
        kinds.append(STREAMS)
    if any(_is_masked_by_tokens(graph, node) for node in live):
        kinds.append(DYNAMIC_MASK)
    return tuple(kinds)


def _is_masked_by_tokens(graph: CapturedGraph, node: Node) -> bool:
    """Return True for an attention whose mask is made of what the tokens are, and not of their positions."""
    if opname(node) != "scaled_dot_product_attention":
        return False
    mask = dict(enumerate(node.args)).get(3, node.kwargs.get("attn_mask"))
    return mask in graph.live


def _mixes_streams(graph: CapturedGraph, node: Node) -> bool:
    """Return True for a product of two matrices of one token each, which both depend on it."""
    if opname(node) not in ("matmul", "bmm") or not all(source in graph.live for source in node.all_input_nodes):
        return False
    shapes = [graph.shape(source, *PROBES[0]) for source in node.all_input_nodes]
    return len(shapes) == 2 and all(shape is not None and shape[:-2] == PROBES[0] for shape in shapes)


def _mixes_tokens(node: Node) -> bool:
    """Return True if it sums over tokens other than attention does: a convolution, or a running sum of floats."""
    if opname(node) in ("conv1d", "convolution"):
        return True
    value = node.meta.get("val")
    return opname(node) == "cumsum" and isinstance(value, Tensor) and value.is_floating_point()
