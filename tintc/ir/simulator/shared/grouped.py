"""Grouped products: fused execution of the experts' linear layers, each on the tokens that chose it alone.

Routed values are ``[B, n, k, width]`` here, one vector for each of the k experts that a token has chosen, in the order
of `Routing.experts`. A product sorts all ``B n k`` of them by expert and multiplies each expert's rows with its own
weights, so that time and memory grow with the experts that are used.

Updates stay pending, as pairs dY, X of the vectors that were trained on (construction.md, section 15)::

    x W_e'^T + b_e' = x W_e^T + b_e + (x X_e^T + 1) dY_e'         X_e, dY_e': of the tokens that chose expert e
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.ir.simulator.interface.chosen_experts import Groups, Routing, examples_of
from tintc.ir.simulator.interface.fused_base import FusedWeights, Pending
from tintc.ir.simulator.kernels.choice import readable
from tintc.ir.simulator.kernels.grouped import grouped_sums
from tintc.ir.simulator.shared.grouped_device import linear_on_device, transposed_on_device


def grouped_linear(w: FusedWeights, routing: Routing, x: Tensor) -> Tensor:
    """Return ``W_e x + b_e`` of every vector ``x [B, n, k, din]``, pending updates included: ``[B, n, k, dout]``."""
    if not readable(x):
        return linear_on_device(w, routing.experts, x)
    weight, bias, rows = _own(w, routing)

    def product(key: int, x: Tensor) -> Tensor:
        y = x @ weight[key].t()
        if bias is not None:
            y = y + bias[key]
        return y

    def lazy(y: Tensor, x: Tensor, update: Pending, dy: Tensor, before: Tensor, same: Tensor | None) -> Tensor:
        scores = x @ before.t() + update.bias
        if same is not None:
            scores = scores * same
        return y.addmm(scores, dy, alpha=update.rate)

    return _by_group(w, routing, rows, x, product, lazy)


def grouped_transposed(w: FusedWeights, routing: Routing, dy: Tensor) -> Tensor:
    """Return ``W_e^T dy`` of every vector ``dy [B, n, k, dout]``, pending updates included: ``[B, n, k, din]``."""
    if not readable(dy):
        return transposed_on_device(w, routing.experts, dy)
    weight, _, rows = _own(w, routing)

    def product(key: int, dy: Tensor) -> Tensor:
        return dy @ weight[key]

    def lazy(dx: Tensor, dy: Tensor, update: Pending, before: Tensor, x: Tensor, same: Tensor | None) -> Tensor:
        scores = dy @ before.t()
        if same is not None:
            scores = scores * same
        return dx.addmm(scores, x, alpha=update.rate)

    return _by_group(w, routing, rows, dy, product, lazy)


def _own(w: FusedWeights, routing: Routing) -> tuple[Tensor, Tensor | None, Groups]:
    """Return weights ``[W, dout, din]`` and biases ``[W, dout]`` as one stack, and the vectors by which they meet.

    Those of each example, ``[B, E, ...]``, are a stack of ``B E``.
    """
    assert w.weight is not None
    if w.weight.dim() == 3:
        return w.weight, w.bias, routing.groups
    count = w.weight.shape[1]
    bias = w.bias
    if bias is not None:
        bias = bias.expand(w.weight.shape[0], -1, -1).flatten(0, 1)
    return w.weight.flatten(0, 1), bias, Groups.of(routing.experts.flatten() + count * routing.examples)


Lazy = Callable[[Tensor, Tensor, Pending, Tensor, Tensor, "Tensor | None"], Tensor]


@dataclass(frozen=True)
class _ExpertsUpdate:
    """An update of experts. groups: its vectors by expert; spans: of every expert, from where to where in these."""

    update: Pending
    groups: Groups
    spans: dict[int, tuple[int, int]]

    @classmethod
    def of(cls, update: Pending) -> _ExpertsUpdate:
        groups = update.groups
        return cls(update, groups, {key: (start, stop) for key, start, stop in groups.spans})

    def vectors(self, expert: int) -> Tensor:
        """Return which of its vectors met an expert, by their index among all."""
        return self.groups.order[slice(*self.spans[expert])]


def _by_group(
    w: FusedWeights,
    routing: Routing,
    groups: Groups,
    x: Tensor,
    product: Callable[[int, Tensor], Tensor],
    lazy: Lazy,
) -> Tensor:
    """Return the product of every group's vectors, and what pending updates add to it.

    lazy: adds an update, of whose dY and X it gets the vectors of the same weights; its last argument is 1 where two
    vectors are of one example, None if all are.
    """
    assert w.weight is not None
    vectors = _taken(x, groups.order)
    updates = [_ExpertsUpdate.of(update) for update in w.pending]
    count = w.weight.shape[-3]
    parts: list[Tensor] = []
    for key, start, stop in groups.spans:
        mine = vectors[start:stop]
        y = product(key, mine)
        for update in updates:
            if key % count not in update.spans:
                continue
            met = update.vectors(key % count)
            same = None
            if x.shape[0] > 1:
                theirs = _examples(update.update)[met]
                same = (routing.examples[groups.order[start:stop], None] == theirs).to(x.dtype)
            dy = update.update.dy.flatten(0, 1)[met]
            y = lazy(y, mine, update.update, dy, _inputs_of(update.update, met), same)
        parts.append(y)
    return torch.cat(parts)[groups.inverse].unflatten(0, x.shape[:3])


def _taken(x: Tensor, indices: Tensor) -> Tensor:
    """Return vectors of ``x [B, n, k, width]`` by their index among all ``B n k``."""
    if x.stride(2) == 0:  # all experts of a token read one vector
        return x[:, :, 0].flatten(0, 1)[indices // x.shape[2]]
    return x.flatten(0, 2)[indices]


def _examples(update: Pending) -> Tensor:
    """Return the example of every vector of an update of experts."""
    assert update.experts is not None
    return examples_of(update.experts)


def _inputs_of(update: Pending, indices: Tensor) -> Tensor:
    """Return the inputs of an update's vectors by their index among all."""
    return update.x.flatten(0, 1)[indices // (update.dy.shape[1] // update.x.shape[1])]


def carried_out(w: FusedWeights, update: Pending) -> FusedWeights:
    """Return weights with an update carried out: ``[E, dout, din]`` for one example, else ``[B, E, dout, din]``."""
    assert w.weight is not None and update.experts is not None
    examples = update.dy.shape[0]
    every = torch.arange(update.dy.shape[:2].numel(), device=update.dy.device)
    inputs = _inputs_of(update, every).unflatten(0, update.dy.shape[:2])
    gradients = expert_sums(update.dy, inputs, update.experts, w.weight.shape[-3])
    weight = gradients * update.rate
    bias = w.bias
    if bias is not None:
        sums = bias_sums(update.dy, update.experts, bias.shape[-2]) * (update.bias * update.rate)
        bias = bias + (sums[0] if examples == 1 and bias.dim() == 2 else sums)
    if examples == 1 and w.weight.dim() == 3:
        weight = weight[0]
    return FusedWeights(w.weight + weight, bias, owned=True)


def expert_sums(dy: Tensor, x: Tensor, experts: Tensor, count: int) -> Tensor:
    """Return ``sum dy x^T [B, count, dout, din]`` over each expert's vectors; ``dy [B, N, dout]``, ``x [B, N, din]``,
    ``experts [B, N]``."""
    if not readable(dy):
        return grouped_sums(dy, x, experts, count)
    sums = dy.new_zeros(dy.shape[0], count, dy.shape[-1], x.shape[-1])
    for example in range(dy.shape[0]):
        groups = Groups.of(experts[example])
        for expert, start, stop in groups.spans:
            chosen = groups.order[start:stop]
            sums[example, expert] = dy[example, chosen].t() @ x[example, chosen]
    return sums


def bias_sums(dy: Tensor, experts: Tensor, count: int) -> Tensor:
    """Return ``sum dy [B, count, dout]`` over each expert's vectors."""
    sums = dy.new_zeros(dy.shape[0], count, dy.shape[-1])
    return sums.scatter_add(1, experts[..., None].expand_as(dy), dy)
