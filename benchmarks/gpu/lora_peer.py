"""The peer in a batch: an adapter of low rank for every text, trained together by autograd, as multi-tenant LoRA is.

Every layer that the simulator updates gets, for each text, two factors of rank `RANK`; one backward pass gives all
their gradients, each text's own, and one more forward pass predicts with them. It learns less than full gradients do:
it is here for the time that plain batched PyTorch takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tintc.ir.core import Program
from tintc.ir.simulator import LinearDescent

RANK = 8


class Adapted(nn.Module):
    """``base(x) + (x A^T) B^T`` with factors of every text: A ``[batch, RANK, din]``, B ``[batch, dout, RANK]``."""

    down: Tensor
    up: Tensor

    def __init__(self, base: nn.Module, batch: int, weight: Tensor):
        super().__init__()
        self.base = base
        dout, din = weight.shape
        self.down = weight.new_empty(batch, RANK, din).normal_(0, din**-0.5).requires_grad_()
        self.up = weight.new_zeros(batch, dout, RANK).requires_grad_()

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.base(x), x @ self.down.transpose(1, 2), self.up.transpose(1, 2))


class LoraPeer:
    """A model whose updated layers, those of a simulator's `program`, have an adapter for each of `batch` texts."""

    def __init__(self, model: PreTrainedModel, program: Program, batch: int, lr: float):
        self.lr = lr
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.layers = list(_adapt(model, program, batch))
        self.call: Callable[..., Any] = model

    def compile(self) -> LoraPeer:
        """Run the model through torch.compile from here on."""
        self.call = torch.compile(self.call, dynamic=False)
        return self

    def run(self, ids: Tensor, train: int) -> Tensor:
        """Return logits ``[batch, T, V]`` after a step on each text's first `train` tokens; begin anew every time."""
        factors = [factor for layer in self.layers for factor in (layer.down, layer.up)]
        with torch.no_grad():
            for layer in self.layers:
                layer.up.zero_()
        with torch.enable_grad():
            logits = self.call(ids[:, :train], use_cache=False).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:train].flatten(), reduction="sum")
            gradients = torch.autograd.grad(loss, factors)
        with torch.no_grad():
            for factor, gradient in zip(factors, gradients, strict=True):
                factor.sub_(gradient, alpha=self.lr)
            return self.call(ids, use_cache=False).logits


def _adapt(model: PreTrainedModel, program: Program, batch: int) -> Iterator[Adapted]:
    """Put adapters around the linear layers that a program updates, and yield them."""
    targets = {op.target for op in program.ops if isinstance(op, LinearDescent)}
    for name, module in list(model.named_modules()):
        if name in targets and isinstance(module, nn.Linear):
            adapted = Adapted(module, batch, module.weight)
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, adapted)
            yield adapted
