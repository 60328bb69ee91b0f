"""Attention and recurrences of an exported graph, with the derivative of scores that one asks for, in place of nodes.

Attention is fused or a softmax written out; its probabilities are constants of the differentiation (paper Def. E.3), or
are differentiated by finite differences, or exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import execute, opname
from tintc.frontend.mixers.ops import recurrence_of_tokens
from tintc.reference.approximations import Difference, Lookup, Override

SOFTMAX = ("softmax", "_softmax")


def is_attention(node: Node) -> bool:
    """Return True for a softmax over keys, as many as there are tokens; one over experts is a router's."""
    return opname(node) in SOFTMAX and not isinstance(node.meta["val"].shape[-1], int)


Scores = bool | Difference
"""How probabilities are differentiated: exactly, not at all (True), or by finite differences."""


def approximate_scores(captured: CapturedGraph, scores: Scores) -> dict[Node, Override]:
    """Return overrides that make attention probabilities constants (paper Def. E.3) or differentiate them by finite
    differences, fused or written out; the matrices of recurrences are constants either way."""
    overrides: dict[Node, Override] = {}
    normalised = {node.args[0] for node in captured.module.graph.nodes if is_attention(node)}
    for node in captured.module.graph.nodes:
        if opname(node) == "scaled_dot_product_attention":
            overrides[node] = _Attention(node, scores)
        elif node.target is recurrence_of_tokens:
            overrides[node] = _DetachedRecurrence(node, scores)
        elif is_attention(node):
            overrides[node] = _Softmax(node, scores)
        elif opname(node) == "logsumexp" and node.args[0] in normalised and scores is True:
            overrides[node] = _Softmax(node, scores)  # the sum of the exponentials is in the gate of an attention sink
    return overrides


class _Softmax:
    def __init__(self, node: Node, scores: Scores):
        self.node = node
        self.scores = scores
        self.inputs = tuple(node.all_input_nodes)

    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Tensor:
        weights: Tensor = execute(self.node, lookup, dtype)
        if self.scores is True:
            return weights.detach()
        dim: Any = self.node.args[1]
        scores: Tensor = lookup(self.inputs[0])
        if dim not in (-1, scores.dim() - 1):
            return weights
        return softmaxed(scores.to(weights.dtype), self.scores)


class _DetachedRecurrence(_Softmax):
    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Tensor:
        return recurrence_of(self.node, lookup, self.scores)


def recurrence_of(node: Node, lookup: Lookup, scores: Scores, real: Tensor | None = None) -> Tensor:
    """Return the value of a recurrence, of which only the values are no constants unless scores is False; real: the
    tokens ``[B, T]`` that are no padding (None: all)."""
    arguments: Any = map_arg(node.args, lookup)
    q, k, v, g, beta, skip, *options = arguments
    if scores is not False:
        q, k, g, beta = (value.detach() for value in (q, k, g, beta))
        if skip is not None:
            skip = skip.detach()
    return recurrence_of_tokens(q, k, v, g, beta, skip, *options, real=real)


class _Attention(_Softmax):
    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Tensor:
        return attention_of(self.node, lookup, self.scores)


def attention_of(node: Node, lookup: Lookup, scores: Scores, sees: Tensor | None = None) -> Tensor:
    """Return the value of a `scaled_dot_product_attention`; sees: as in `seen_softmax`."""
    args: Any = map_arg(node.args, lookup)
    kwargs: Any = map_arg(node.kwargs, lookup)
    return _attention(*args, **kwargs, policy=scores, sees=sees)


EXCLUDED = -1e30
"""A score below this has been masked in the graph, by adding the smallest number of a short type."""


def softmaxed(scores: Tensor, policy: Scores) -> Tensor:
    """Return the softmax over the last dimension, differentiated as the policy says."""
    if policy is True:
        return scores.softmax(-1).detach()
    if policy is False:
        return scores.softmax(-1)
    result: Any = _DifferencedSoftmax.apply(scores, policy)
    return result


class _DifferencedSoftmax(torch.autograd.Function):
    """A softmax forward; backward its derivative along the gradient, by a finite difference: its Jacobian is
    symmetric. Scores that are masked stay where they are."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, difference: Difference) -> Tensor:
        ctx.save_for_backward(scores)
        ctx.difference = difference
        return scores.softmax(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (scores,) = ctx.saved_tensors
        return ctx.difference.of_softmax(scores, gradients[0].masked_fill(scores < EXCLUDED, 0.0)), None


def seen_softmax(scores: Tensor, sees: Tensor | None, policy: Scores = False) -> Tensor:
    """Return probabilities ``[..., T, T]`` over the keys that a query sees; zeros where it sees none.

    sees: ``[T, T]`` bool, besides the graph's own mask; None: the softmax.
    """
    if sees is None:
        return softmaxed(scores, policy)
    both = sees.to(scores.device).expand(scores.shape) & (scores > EXCLUDED)
    some = both.any(-1, keepdim=True)
    return softmaxed(torch.where(some, scores.masked_fill(~both & some, -torch.inf), 0.0), policy) * some


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    policy: Scores,
    sees: Tensor | None,
) -> Tensor:
    """Return `scaled_dot_product_attention`, written out; heads ``[B, H, T, d]``."""
    if enable_gqa:
        group = query.shape[1] // key.shape[1]
        key = key.repeat_interleave(group, 1)
        value = value.repeat_interleave(group, 1)
    factor: float = query.shape[-1] ** -0.5
    if scale is not None:
        factor = scale
    scores = query @ key.transpose(-1, -2) * factor
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        else:
            scores = scores + attn_mask
    return seen_softmax(scores, sees, policy) @ value
