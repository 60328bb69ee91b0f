"""Explicit fine-tuning beside a simulator: the model itself, by autograd, without any approximation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from tintc.errors import ModelError
from tintc.frontend.graph.calling import called_on_ids
from tintc.ir.auxiliary.interpreter import viewed_rows
from tintc.ir.core import Parameter, Program
from tintc.ir.functions import at_least_fp32
from tintc.ir.simulator import SimOp

T = TypeVar("T")


@dataclass(frozen=True)
class TrainText:
    """A text to tune on: ids ``[T]``, of which those where `targets [T]` is True are predicted in the loss, each from
    those before it."""

    ids: Tensor
    targets: Tensor


def updated_parameters(program: Program) -> dict[str, Parameter]:
    """Return the parameters that a simulator's program updates, by ``<layer>.<part>``."""
    updated: dict[str, Parameter] = {}
    for op in program.ops:
        if isinstance(op, SimOp) and (layer := op.updated_weight()) is not None:
            for part in op.updated_parts():
                name = f"{layer}.{part}"
                if name in program.parameters:
                    updated[name] = program.parameters[name]
    return updated


class ExplicitTuning:
    """Gradient descent on the parameters that a simulator's program updates, by autograd on the model itself.

    Where a tensor of the model holds several layers, such as GPT-2's queries, keys and values, the rows that the
    program updates are stepped. The loss is the summed cross-entropy, as a simulator's.
    """

    def __init__(self, model: nn.Module, program: Program):
        """Prepare `model`, whose weights are what they were after every call.

        Raises `ModelError` if it lacks a parameter that the program updates.
        """
        self.model = model
        self.n_steps: int = program.attributes["n_steps"]
        self.parts = updated_parameters(program)
        named = dict(model.named_parameters(remove_duplicate=False))
        lacking = [part.source for part in self.parts.values() if part.source not in named]
        if lacking:
            raise ModelError(
                f"The model has no parameter {lacking[0]}, which the simulator updates; pass the model that it was "
                "compiled from, to --model."
            )
        self.tensors = {part.source: named[part.source] for part in self.parts.values()}
        for parameter in named.values():
            parameter.requires_grad_(False)
        for tensor in self.tensors.values():
            tensor.requires_grad_(True)

    @torch.no_grad()
    def logits(self, ids: Tensor, count: int) -> Tensor:
        """Return logits ``[count, V]`` of the last of ``ids [T]`` under the present weights."""
        with called_on_ids(self.model), _head_on_last(self.model, count):
            return self.model(ids[None])[0, -count:]

    def after(
        self, texts: Sequence[TrainText], rates: Sequence[float], normalised: bool, predict: Callable[[], T]
    ) -> list[T]:
        """Return what `predict` gives after descent on `texts` with each of the rates.

        normalised: every part's gradient is divided by its Euclidean norm. The first gradient serves all rates.
        """
        first = self._gradients(texts)
        results: list[T] = []
        for rate in rates:
            with self._kept():
                self._step(first, rate, normalised)
                for _ in range(self.n_steps - 1):
                    self._step(self._gradients(texts), rate, normalised)
                results.append(predict())
        return results

    def _gradients(self, texts: Sequence[TrainText]) -> dict[str, Tensor]:
        """Return the gradient of the loss, summed over texts and targets, by tensor."""
        sums: dict[str, Tensor] = {}
        for text in texts:
            with torch.enable_grad(), called_on_ids(self.model):
                logits = at_least_fp32(self.model(text.ids[None])[0, :-1])
                losses = F.cross_entropy(logits, text.ids[1:], reduction="none")
                loss = losses[text.targets[1:]].sum()
                gradients = torch.autograd.grad(
                    loss, list(self.tensors.values()), allow_unused=True, materialize_grads=True
                )
            for name, gradient in zip(self.tensors, gradients, strict=True):
                if name in sums:
                    sums[name] += gradient
                else:
                    sums[name] = gradient
        return sums

    @torch.no_grad()
    def _step(self, gradients: dict[str, Tensor], rate: float, normalised: bool) -> None:
        """Subtract the gradients, times the rate, from the rows that descend."""
        for part in self.parts.values():
            runs = [rows for _, rows, _ in viewed_rows(part, gradients[part.source])]
            scale = rate
            if normalised:
                norm = float(torch.stack([run.norm() for run in runs]).norm())
                if norm == 0:
                    continue
                scale = rate / norm
            targets = [rows for _, rows, _ in viewed_rows(part, self.tensors[part.source])]
            for target, run in zip(targets, runs, strict=True):
                target.sub_(run, alpha=scale)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Put the weights back at the end."""
        before = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self.tensors.items():
                    tensor.copy_(before[name])


@contextmanager
def _head_on_last(model: nn.Module, count: int) -> Iterator[None]:
    """Let the head of a model of transformers, where it has one, see the last `count` tokens alone."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if not isinstance(head, nn.Module):
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, arguments: (arguments[0][:, -count:], *arguments[1:]))
    try:
        yield
    finally:
        hook.remove()
