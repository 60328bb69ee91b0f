"""Attention masks and positions of one's own in an exported graph, which computes both from the length alone.

Overrides of single nodes, like the approximations: attention probabilities leave out what a token may not see, and what
is looked up or computed by position (rows of a position table, cosines and sines, factors) is put where the positions
say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from tintc.errors import InputError, OptionError
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import execute, opname
from tintc.reference.approximations import Lookup, Override
from tintc.reference.scores import Scores, attention_of, is_attention, seen_softmax


def masked_scores(captured: CapturedGraph, overrides: Mapping[Node, Override], sees: Tensor) -> dict[Node, Override]:
    """Return overrides by which attention also obeys ``sees [T, T]`` bool. overrides: those that it has already."""
    masked: dict[Node, Override] = {}
    normalised = {node.args[0] for node in captured.module.graph.nodes if is_attention(node)}
    for node in captured.module.graph.nodes:
        scores = getattr(overrides.get(node), "scores", False)
        if opname(node) == "scaled_dot_product_attention":
            masked[node] = _MaskedAttention(node, sees, scores)
        elif is_attention(node):
            masked[node] = _MaskedSoftmax(node, sees, scores)
        elif opname(node) == "logsumexp" and node.args[0] in normalised:
            masked[node] = _MaskedSum(node, sees, scores)
    return masked


def moved_positions(captured: CapturedGraph, positions: Tensor, valid: Tensor | None = None) -> dict[Node, Override]:
    """Return overrides that put everything that depends on a token's position at ``positions [T]``, each less than T.

    valid ``[T]``: the tokens that are no padding (None: all). Raises `OptionError` if the graph has positions in
    another form, such as a bias of the scores, which depends on distances alone, and distances change.
    """
    if bool((positions < 0).any() or (positions >= len(positions)).any()):
        raise InputError(f"position_ids must be from 0 to {len(positions) - 1}, the length of the text less one.")
    if torch.equal(positions, torch.arange(len(positions)).to(positions)):
        return {}
    moved: dict[Node, Override] = {}
    behind: set[Node] = set()
    for node in captured.module.graph.nodes:
        follows = bool(behind.intersection(node.all_input_nodes))
        dim = None
        if not follows:
            dim = _dimension(captured, node)
        if dim is not None:
            moved[node] = _Moved(node, positions, dim)
        if node not in captured.live and (dim is not None or follows):
            behind.add(node)  # is where it belongs already
    if not moved and not _are_shifted(positions, valid):
        raise OptionError("This model has no position embedding, learned or rotary, for position_ids to move.")
    return moved


def _are_shifted(positions: Tensor, valid: Tensor | None) -> bool:
    """Return True if all tokens that are no padding stand equally far from where the graph has them."""
    shifts = positions - torch.arange(len(positions)).to(positions)
    if valid is not None:
        shifts = shifts[valid.to(shifts.device)]
    return bool((shifts == shifts[:1]).all())


def _dimension(captured: CapturedGraph, node: Node) -> int | None:
    """Return the dimension of a node that counts positions, or None.

    Such a node depends on positions and on no token, and is looked up in a table, an angle, or added to or multiplied
    with a value of the tokens. Biases of scores are none.
    """
    if opname(node) == "embedding" and node.args[1] not in captured.live:
        return -2
    if node in captured.live or node.op != "call_function":
        return None
    if opname(node) in ("cos", "sin"):
        return -2
    if not any(user in captured.live and opname(user) in ("add", "sub", "mul", "div") for user in node.users):
        return None
    short, long = (captured.shape(node, 1, length) for length in (5, 7))
    if short is None or long is None or not node.meta["val"].is_floating_point():
        return None
    varied = [at - len(short) for at, sizes in enumerate(zip(short, long, strict=True)) if sizes == (5, 7)]
    if len(varied) == 1 and varied[0] < -1:
        return varied[0]
    return None


class _Moved:
    """Rows of ``[..., T, d]`` (`dim`: which dimension is T's) where the positions say."""

    def __init__(self, node: Node, positions: Tensor, dim: int):
        self.node = node
        self.positions = positions
        self.dim = dim
        self.inputs = tuple(node.all_input_nodes)

    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Tensor:
        value: Tensor = execute(self.node, lookup, dtype)
        return value.index_select(self.dim, self.positions.to(value.device))


class _MaskedAttention:
    """A row that may see nothing gives zeros."""

    def __init__(self, node: Node, sees: Tensor, scores: Scores):
        self.node = node
        self.sees = sees
        self.scores = scores
        self.inputs = tuple(node.all_input_nodes)

    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Tensor:
        return attention_of(self.node, lookup, self.scores, self.sees)


class _MaskedSoftmax:
    """The same for a softmax written out over scores ``[B, H, T, T]``."""

    def __init__(self, node: Node, sees: Tensor, scores: Scores):
        self.node = node
        self.sees = sees
        self.scores = scores
        self.inputs = tuple(node.all_input_nodes)

    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Tensor:
        source: Any = self.node.args[0]
        scores: Tensor = lookup(source)
        # A sink's column stands after the last key's, and every query sees it.
        sees = F.pad(self.sees, (0, scores.shape[-1] - self.sees.shape[-1]), value=True)
        return seen_softmax(scores, sees, self.scores)


class _MaskedSum(_MaskedSoftmax):
    """The logarithm of the softmax's denominator."""

    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Tensor:
        source: Any = self.node.args[0]
        scores: Tensor = lookup(source)
        dims: Any = self.node.args[1:]
        total = scores.masked_fill(~self.sees.to(scores.device), -torch.inf).logsumexp(*dims)
        if self.scores is True:
            total = total.detach()
        return total
