"""Streams written out: chunk by chunk, explicit fine-tuning of a captured graph, whose weights are then replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.trace_model import capture
from tintc.reference import tune
from tintc.reference.captured import run_captured


@dataclass
class ExplicitLoop:
    """A model that learns one text after the other, in fp64, with a simulator's approximations.

    now: its graph, whose tensors are exchanged as it learns; then: what it began as.
    """

    now: CapturedGraph
    then: dict[str, Tensor]
    rate: float
    n_steps: int = 1
    layers: int | None = None
    scores: list[tuple[float, float]] = field(default_factory=list)

    @classmethod
    def of(cls, model: PreTrainedModel, rate: float, n_steps: int = 1, layers: int | None = None) -> ExplicitLoop:
        graph = capture(model)
        return cls(graph, dict(graph.tensors), rate, n_steps, layers)

    def learn(self, ids: Tensor, train: Tensor, loss: Tensor | None = None) -> Tensor:
        """Learn a text ``[T]``; return the logits ``[T, V]`` that it had before. train, loss ``[T]``: masks."""
        given = None if loss is None else loss[None]
        tuned = tune(
            self.now,
            ids[None],
            train[None],
            loss_mask=given,
            inner_lr=self.rate,
            n_steps=self.n_steps,
            n_update_layers=self.layers,
        )
        for step in tuned.gradients:
            for name, gradient in step.items():
                self.now.tensors[name] = self.now.tensors[name].double() - self.rate * gradient[0]
        return tuned.logits_before[0]

    def stream(self, text: Tensor, chunk_size: int, context: int, opening: Sequence[int] = ()) -> None:
        """Learn a text ``[T]`` chunk by chunk, and keep what each scored before, under the weights of now and then."""
        first = torch.tensor(opening, dtype=torch.long)
        for start in range(0, len(text), chunk_size):
            stop = min(start + chunk_size, len(text))
            earlier = text[max(0, start - context) : start]
            ids = torch.cat((first, earlier, text[start:stop]))
            chunk = len(first) + len(earlier)
            columns = torch.arange(len(ids))
            frozen = self.then_logits(ids)
            streamed = self.learn(ids, columns >= chunk - 1, columns >= chunk)
            begin = max(1, chunk)
            losses = [
                float(F.cross_entropy(logits[begin - 1 : -1], ids[begin:], reduction="sum"))
                if len(ids) > begin
                else 0.0
                for logits in (streamed, frozen)
            ]
            self.scores.append((losses[0], losses[1]))

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Return what it predicts now, ``[B, T, V]``."""
        return run_captured(self.now, ids)

    @torch.no_grad()
    def then_logits(self, ids: Tensor) -> Tensor:
        """Return what it predicted at first, ``[T, V]``."""
        return run_captured(self.now, ids[None], self.then)[0]
