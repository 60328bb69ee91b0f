"""The update of one layer's weights as a sum over train tokens: linear layers, stacks of experts, norms.

Formulas are those of `tintc.report.teaching`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """One step of a layer's descent. x ``[n, din]``: inputs of the first n tokens; dy ``[n, dout]``: gradients of the
    outputs there, zero at tokens that are not trained on; of experts ``[n, k, din]``, ``[n, k, dout]``, and chosen
    ``[n, k]``: whose they are, -1 for nobody's; rate: what they are multiplied by; copies: of the bias."""

    x: Tensor
    dy: Tensor
    rate: float
    copies: int
    chosen: Tensor | None = None


@dataclass(frozen=True)
class NormStep:
    """One step of a norm's descent. gain, bias ``[n, D]``: what each of the first n tokens adds to the gradient of gain
    or bias, None for one that does not descend; rate: what they are multiplied by."""

    gain: Tensor | None
    bias: Tensor | None
    rate: float


@dataclass(frozen=True)
class LayerUpdate(ABC):
    """The update of one layer's weights, where the last pass uses it.

    name: the weights; origin: the auxiliary's value; layer: of the auxiliary, -1 outside; output ``[T, ...]``: the
    layer's in the last pass.
    """

    name: str
    origin: str
    layer: int
    output: Tensor

    @abstractmethod
    def contribution(self, token: int) -> Tensor:
        """Return ``c_tj`` for all tokens t and the train token j, shaped like the output: what it has taught this
        layer."""

    @abstractmethod
    def change(self) -> Tensor:
        """Return the change of the output that the update has made, shaped like it: the sum of all contributions."""

    @abstractmethod
    def along(self, direction: Tensor) -> Tensor:
        """Return ``<c_tj, direction_t>`` for tokens t and train tokens j, ``[T, T]``. direction: shaped like the
        output."""

    def shares(self) -> Tensor:
        """Return ``[T, T]``: by how much of the output's length train token j (column) has moved it at token t (row).

        It is ``<c_tj, d_t> / (|d_t| |y_t|)`` for the change d_t and the output y_t, so that a row adds up to
        ``|d_t| / |y_t|``. Below zero a token has pulled against the change that all together have made.
        """
        change = self.change()
        lengths = change.flatten(1).norm(dim=1) * self.output.flatten(1).norm(dim=1)
        return self.along(change / lengths.clamp(min=1e-30).reshape(-1, *[1] * (change.dim() - 1)))

    def _placed(self, parts: list[Tensor]) -> Tensor:
        """Return the sum of ``[T, n]`` of several steps as ``[T, T]``, zero for tokens that no step has."""
        length = len(self.output)
        whole = self.output.new_zeros(length, length)
        for part in parts:
            whole[:, : part.shape[1]] += part
        return whole


@dataclass(frozen=True)
class LinearUpdate(LayerUpdate):
    """The update of a linear layer. x ``[T, din]``: its inputs in the last pass, whose output is ``[T, dout]``."""

    x: Tensor
    steps: tuple[Step, ...]

    def contribution(self, token: int) -> Tensor:
        parts = [self._weights(step)[:, token, None] * step.dy[token] for step in self.steps if token < len(step.dy)]
        return sum(parts, torch.zeros_like(self.output))

    def change(self) -> Tensor:
        return sum((self._weights(step) @ step.dy for step in self.steps), torch.zeros_like(self.output))

    def along(self, direction: Tensor) -> Tensor:
        return self._placed([self._weights(step) * (direction @ step.dy.T) for step in self.steps])

    def _weights(self, step: Step) -> Tensor:
        """Return ``-eta (<x_t, x_j> + m)``, ``[T, n]``."""
        return -step.rate * (self.x @ step.x.T + step.copies)


@dataclass(frozen=True)
class ExpertsUpdate(LayerUpdate):
    """The update of a stack of experts. x ``[T, k, din]``, output ``[T, k, dout]``: of each token's experts in the last
    pass; chosen ``[T, k]``: which, -1 for none, whose output is zero."""

    x: Tensor
    chosen: Tensor
    steps: tuple[Step, ...]

    def contribution(self, token: int) -> Tensor:
        whole = torch.zeros_like(self.output)
        for step in self.steps:
            if token < len(step.dy):
                whole += torch.einsum("tkl,ld->tkd", self._weights(step)[:, :, token], step.dy[token])
        return whole

    def change(self) -> Tensor:
        parts = (torch.einsum("tkjl,jld->tkd", self._weights(step), step.dy) for step in self.steps)
        return sum(parts, torch.zeros_like(self.output))

    def along(self, direction: Tensor) -> Tensor:
        parts = (self._weights(step) * torch.einsum("tkd,jld->tkjl", direction, step.dy) for step in self.steps)
        return self._placed([part.sum((1, 3)) for part in parts])

    def _weights(self, step: Step) -> Tensor:
        """Return ``-eta (<x_te, x_je> + m)`` for an expert e that both have chosen, else zero, ``[T, k, n, k]``."""
        assert step.chosen is not None
        same = self.chosen[:, :, None, None] == step.chosen
        same &= (step.chosen >= 0)[None, None]
        return -step.rate * (torch.einsum("tkd,jld->tkjl", self.x, step.x) + step.copies) * same


@dataclass(frozen=True)
class NormUpdate(LayerUpdate):
    """The update of a norm's gain and bias. normed ``[T, D]``: f(x) in the last pass."""

    normed: Tensor
    steps: tuple[NormStep, ...]

    def contribution(self, token: int) -> Tensor:
        whole = torch.zeros_like(self.output)
        for step in self.steps:
            if step.gain is not None and token < len(step.gain):
                whole -= step.rate * step.gain[token] * self.normed
            if step.bias is not None and token < len(step.bias):
                whole -= step.rate * step.bias[token]
        return whole

    def change(self) -> Tensor:
        whole = torch.zeros_like(self.output)
        for step in self.steps:
            if step.gain is not None:
                whole -= step.rate * step.gain.sum(0) * self.normed
            if step.bias is not None:
                whole -= step.rate * step.bias.sum(0)
        return whole

    def along(self, direction: Tensor) -> Tensor:
        parts: list[Tensor] = []
        for step in self.steps:
            if step.gain is not None:
                parts.append(-step.rate * ((direction * self.normed) @ step.gain.T))
            if step.bias is not None:
                parts.append(-step.rate * (direction @ step.bias.T))
        return self._placed(parts)
