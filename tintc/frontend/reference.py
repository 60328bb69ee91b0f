"""`run_captured`: the exported FX graph, run node by node. Independent of the IR, so that tests may compare with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from tintc.frontend.execution import CHECKS, execute, opname
from tintc.frontend.graph import CapturedGraph


def run_captured(
    captured: CapturedGraph,
    input_ids: Tensor,
    parameters: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
    keep_casts: bool = False,
    detach_attention: bool = False,
) -> Tensor:
    """Logits ``[B, T, V]`` of the graph for ``input_ids [B, T]``, differentiable with respect to `parameters`.

    parameters: tensors by name, tied names included, in place of the captured ones. Every float is in `dtype`;
    keep_casts leaves the graph in its own dtypes instead. detach_attention makes attention probabilities constants of
    the differentiation (paper Def. E.3), whether attention is fused or a softmax written out.
    """
    wide = None if keep_casts else dtype
    given = {captured.aliases.get(name, name): tensor for name, tensor in (parameters or {}).items()}
    values: dict[Node, Any] = {captured.input_ids: input_ids}
    last_use = {source: node for node in captured.module.graph.nodes for source in node.all_input_nodes}
    for node in captured.module.graph.nodes:
        if node.op == "placeholder":
            if node in captured.names:
                name = captured.names[node]
                values[node] = _widened(given.get(name, captured.tensors[name]), wide)
        elif node.op == "call_function" and opname(node) not in CHECKS:
            values[node] = _run(node, values, wide, detach_attention)
            for source in node.all_input_nodes:
                if last_use[source] is node and source is not captured.logits:
                    values.pop(source, None)
    return values[captured.logits]


def _widened(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _run(node: Node, values: dict[Node, Any], dtype: torch.dtype | None, detach_attention: bool) -> Any:
    if detach_attention and opname(node) == "scaled_dot_product_attention":
        args: Any = map_arg(node.args, values.__getitem__)
        kwargs: Any = map_arg(node.kwargs, values.__getitem__)
        return _detached_attention(*args, **kwargs)
    result = execute(node, values.__getitem__, dtype)
    return result.detach() if detach_attention and opname(node) in ("softmax", "_softmax") else result


def _detached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` with its probabilities as constants; heads ``[B, H, T, d]``."""
    if enable_gqa:
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1).detach() @ value
