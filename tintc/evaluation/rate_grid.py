"""A grid of learning rates on one text, and the best of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tintc.evaluation.hints import ROUNDING
from tintc.evaluation.perplexity import Evaluation
from tintc.runtime.artefact.checks import options_digest

if TYPE_CHECKING:
    from tintc.runtime.model.causal_lm import TintForCausalLM

PER_DECADE = (1, 2, 5)
DECADES = {"normalized": range(-4, 0)}
"""Powers of ten that the grid of an optimiser begins its decades with; normalised steps do not grow with gradients."""
OTHER_DECADES = range(-7, -2)


def grid(optimizer: str) -> list[float]:
    """Return the rates that are tried for an optimiser unless others are named, three in a decade."""
    decades = DECADES.get(optimizer, OTHER_DECADES)
    return [float(f"{factor}e{power}") for power in decades for factor in PER_DECADE]


@dataclass(frozen=True)
class Tried:
    """One rate. loss: mean cross-entropy of the scored tokens after the update, None if not a finite number; gain: by
    how much it is less than before."""

    inner_lr: float
    loss: float | None
    gain: float | None


@dataclass(frozen=True)
class RateGrid:
    """The losses of several rates on one text, in the order of the rates; loss_before: without an update."""

    loss_before: float
    rates: tuple[Tried, ...]
    evaluation: Evaluation

    @classmethod
    def of(cls, evaluation: Evaluation) -> RateGrid:
        """Return the grid of an evaluation at several rates."""
        before = math.log(evaluation.perplexity_before)
        tried: list[Tried] = []
        for one in evaluation.rates or ():
            rate, after = one["inner_lr"], one["perplexity_after"]
            assert rate is not None
            if after is None:
                tried.append(Tried(rate, None, None))
            else:
                tried.append(Tried(rate, math.log(after), before - math.log(after)))
        return cls(before, tuple(sorted(tried, key=lambda one: one.inner_lr)), evaluation)

    @property
    def best(self) -> Tried:
        """Return the rate with the least loss."""
        return min(self.rates, key=lambda one: math.inf if one.loss is None else one.loss)

    @property
    def useful(self) -> bool:
        """Return True if the best rate is better than no update, by more than rounding."""
        return self.best.gain is not None and self.best.gain > ROUNDING

    @property
    def remark(self) -> str | None:
        """Return a sentence on a grid that does not hold the best rate there is, None for any other."""
        if not self.useful:
            return "No rate of the grid predicts the text better than no update; try smaller ones with --lr."
        ends = {self.rates[0].inner_lr: "smaller", self.rates[-1].inner_lr: "larger"}
        if len(self.rates) > 1 and self.best.inner_lr in ends:
            return f"The best rate stands at an end of the grid; try {ends[self.best.inner_lr]} ones too, with --lr."
        return None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        shared = ("tokens_scored", "blocks", "block_size", "train_tokens", "seconds", "executor", "device")
        rates = [{"inner_lr": one.inner_lr, "loss": one.loss, "gain": one.gain} for one in self.rates]
        values = {"loss_before": self.loss_before, "rates": rates, "best": self.best.inner_lr, "remark": self.remark}
        return values | {name: getattr(self.evaluation, name) for name in shared}


def set_rate(sim: TintForCausalLM, rate: float) -> None:
    """Store a learning rate for all layers and steps of a simulator, as if it had been compiled with it."""
    with torch.no_grad():
        for name, stored in sim.named_parameters():
            if name.startswith("rates."):
                stored.fill_(rate)
    sim.config.inner_lr = rate
    if "options" in sim.config.digests:
        sim.config.digests = sim.config.digests | {"options": options_digest(sim.config.to_dict())}
