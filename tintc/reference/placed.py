"""Attention masks and positions of one's own in an exported graph, which computes both from the length alone.

Overrides of single nodes, like the approximations: attention probabilities leave out what a token may not see, and what
is looked up or computed by position (rows of a position table, cosines and sines) is put where the positions say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tintc.errors import InputError, OptionError
from tintc.frontend.execution import execute, opname
from tintc.frontend.graph import CapturedGraph
from tintc.reference.captured import Lookup, Override, attention_of, seen_softmax


def masked_scores(captured: CapturedGraph, overrides: Mapping[Node, Override], sees: Tensor) -> dict[Node, Override]:
    """Attention that also obeys ``sees [T, T]`` bool; overrides: what stands in place of its nodes already."""
    found: dict[Node, Override] = {}
    for node in captured.module.graph.nodes:
        detached = node in overrides
        if opname(node) == "scaled_dot_product_attention":
            found[node] = _MaskedAttention(node, sees, detached)
        elif opname(node) in ("softmax", "_softmax"):
            found[node] = _MaskedSoftmax(node, sees, detached)
    return found


def moved_positions(captured: CapturedGraph, positions: Tensor) -> dict[Node, Override]:
    """Everything that depends on a token's position, at ``positions [T]``, each less than T.

    Raises `OptionError` if the graph has positions in another form, such as a bias of the scores.
    """
    if bool((positions < 0).any() or (positions >= len(positions)).any()):
        raise InputError(f"position_ids must be from 0 to {len(positions) - 1}, the length of the text less one.")
    if torch.equal(positions, torch.arange(len(positions)).to(positions)):
        return {}
    found: dict[Node, Override] = {}
    for node in captured.module.graph.nodes:
        by_table = opname(node) == "embedding" and node.args[1] not in captured.live
        by_angle = opname(node) in ("cos", "sin") and node not in captured.live
        if by_table or by_angle:
            found[node] = _Moved(node, positions)
    if not found:
        raise OptionError("This model has no position embedding, learned or rotary, for position_ids to move.")
    return found


class _Moved:
    """Rows of ``[..., T, d]`` where the positions say."""

    def __init__(self, node: Node, positions: Tensor):
        self.node, self.positions, self.inputs = node, positions, tuple(node.all_input_nodes)

    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Tensor:
        value: Tensor = execute(self.node, lookup, dtype)
        return value.index_select(-2, self.positions.to(value.device))


class _MaskedAttention:
    """A row that may see nothing gives zeros."""

    def __init__(self, node: Node, sees: Tensor, detached: bool):
        self.node, self.sees, self.detached, self.inputs = node, sees, detached, tuple(node.all_input_nodes)

    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Tensor:
        return attention_of(self.node, lookup, self.detached, self.sees)


class _MaskedSoftmax:
    """The same for a softmax written out over scores ``[B, H, T, T]``."""

    def __init__(self, node: Node, sees: Tensor, detached: bool):
        self.node, self.sees, self.detached, self.inputs = node, sees, detached, tuple(node.all_input_nodes)

    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Tensor:
        source: Any = self.node.args[0]
        weights = seen_softmax(lookup(source), self.sees)
        return weights.detach() if self.detached else weights
