"""A text under the simulator: its tokens, the loss of each before and after the update, and attention patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tintc.ir.functions import at_least_fp32
from tintc.ir.inputs import Inputs

if TYPE_CHECKING:
    from tintc.runtime.model.causal_lm import TintForCausalLM

LONGEST = 96
"""Tokens of a text that are shown; a matrix of more would not be legible."""
SHOWN_LAYERS = 8
"""Layers whose attention is shown: each takes a third of a megabyte at that length."""


@dataclass(frozen=True)
class Attention:
    """Attention probabilities of one layer, ``[H, T, T]`` in the first pass and in the last. name: as in the capture
    point, without its pass."""

    name: str
    layer: int
    before: Tensor
    after: Tensor

    def most_changed(self) -> int:
        """Return the head whose pattern the update has changed most, in the mean of absolute differences."""
        return int((self.after - self.before).abs().mean((1, 2)).argmax())


def most_changed(layers: Sequence[Attention]) -> list[Attention]:
    """Return the layers whose patterns the update has changed most, at most `SHOWN_LAYERS`, in their order."""
    by_change = sorted(layers, key=lambda one: float((one.after - one.before).abs().mean()), reverse=True)
    return sorted(by_change[:SHOWN_LAYERS], key=lambda one: one.layer)


@dataclass(frozen=True)
class TextRun:
    """One text, of which the first `train` tokens are trained on.

    tokens: as they are read; before, after ``[T]``: loss of each token under the auxiliary and under the updated one,
    in nats (NaN for the first, which nothing predicts); attention: of the layers where the update has changed it most.
    """

    ids: Tensor
    inputs: Inputs
    tokens: list[str]
    train: int
    before: Tensor
    after: Tensor
    attention: list[Attention]
    executor: str

    @property
    def gain(self) -> Tensor:
        """Return by how much the update has lowered each token's loss, ``[T]`` in nats."""
        return self.before - self.after

    def scored(self, losses: Tensor) -> float:
        """Return the mean of losses ``[T]`` over the tokens that were not trained on."""
        return float(losses[self.train :].mean())


@torch.no_grad()
def run_text(sim: TintForCausalLM, ids: Tensor) -> TextRun:
    """Run ``ids [T]`` with the stored rates and train fraction, in one pass of the simulator."""
    inputs = sim.resolve(ids[None].to(sim.device))
    steps = sim.config.n_steps
    points = _attention_points(sim)
    wanted = [f"pass{at}.{name}" for name in points for at in (0, steps)]
    captured: dict[str, Tensor] = {}
    if wanted:
        with sim.capture(*wanted) as captured:
            results = sim.execute(inputs, None, ("logits_before", "logits"), None)
    else:
        results = sim.execute(inputs, None, ("logits_before", "logits"), None)
    every = [
        Attention(name, layer, captured[f"pass0.{name}"][0].float(), captured[f"pass{steps}.{name}"][0].float())
        for name, layer in points.items()
    ]
    before, after = (token_losses(results[name], ids) for name in ("logits_before", "logits"))
    train = int(inputs.train_mask(0).sum())
    tokens = read_tokens(sim.tokenizer, ids.tolist())
    attention = most_changed(every)
    return TextRun(ids, inputs, tokens, train, before, after, attention, sim.last_executor)


def _attention_points(sim: TintForCausalLM) -> dict[str, int]:
    """Return the layers of the attention patterns that an update below them can change, by point without its pass."""
    layers: dict[str, int] = {}
    updated = sim.config.num_hidden_layers - sim.config.n_update_layers
    for point in sim.capture_points():
        at, _, name = point.name.partition(".")
        layer = getattr(point.op, "layer", -1)
        if at == "pass0" and ".attention" in name and len(point.shape) == 4 and layer > updated:
            layers[name] = layer
    return layers


def token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the loss of every token from ``logits [1, T, V]``, ``[T]`` in nats; NaN for the first."""
    losses = F.cross_entropy(at_least_fp32(logits[0, :-1]), ids[1:].to(logits.device), reduction="none")
    return F.pad(losses.cpu(), (1, 0), value=float("nan"))


def read_tokens(tokenizer: Any, ids: list[int]) -> list[str]:
    """Return what each token adds to the text; its number in angle brackets where there is no tokenizer.

    A token alone may read otherwise (a space in front is lost, or a part of a letter is none), so beginnings of the
    text are read, and what one is longer than the last.
    """
    if tokenizer is None:
        return [f"<{token}>" for token in ids]
    tokens: list[str] = []
    so_far = ""
    for count, token in enumerate(ids, 1):
        text = tokenizer.decode(ids[:count])
        if text.startswith(so_far):
            tokens.append(text[len(so_far) :])
        else:
            tokens.append(tokenizer.decode([token]))
        so_far = text
    return tokens
