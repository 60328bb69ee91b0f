"""What an attention mask allows, by evaluating it at a few lengths."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.graph import CapturedGraph

EXCLUDED = -1e4
"""A score with this or less added has probability 0."""


def why_not_causal(graph: CapturedGraph, mask: Node) -> str | None:
    """None if the mask lets every token see itself and what precedes it; otherwise the reason, without full stop.

    The mask is evaluated at two short lengths and at the longest that the result must serve, so that a window wider
    than that does not matter.
    """
    if mask in graph.live:
        return "the attention mask depends on the tokens"
    for batch, length in ((2, min(5, graph.max_length)), (2, min(9, graph.max_length)), (1, graph.max_length)):
        value = graph.evaluate(mask, batch, length)
        if value.dim() not in (2, 4) or value.shape[-1] != length:
            return "the attention mask is not [batch, heads, length, length]"
        allowed = _allowed(value)
        if allowed is None:
            return "a bias is added to the scores (ALiBi or a learned one), which is not supported"
        causal = torch.ones(length, length, dtype=torch.bool, device=value.device).tril()
        if (allowed & ~causal).any():
            return "attention sees later tokens, only causal attention is supported"
        if not (allowed == causal).all():
            return f"attention does not see all earlier tokens at length {length} (a sliding window?)"
    return None


def _allowed(value: Tensor) -> Tensor | None:
    """Where a mask, boolean or added to the scores, allows attention; None if it does more than that."""
    if value.dtype == torch.bool:
        return value
    excluded = value <= EXCLUDED
    return ~excluded if bool(((value == 0) | excluded).all()) else None
