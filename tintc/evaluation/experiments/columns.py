"""What is compared in an experiment: ways to come from a text that is trained on to one that is predicted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tintc.errors import OptionError
from tintc.evaluation.experiments.explicit import ExplicitTuning, TrainText
from tintc.evaluation.rate_sweep import states_at, unchanged
from tintc.runtime.adaptation.cache import TintCache
from tintc.runtime.adaptation.fingerprint import fingerprint
from tintc.runtime.adaptation.prefill import predict
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.causal_lm import TintForCausalLM

Predictor = Callable[[Tensor, int], Tensor]
"""From ids ``[T]`` and a number n to the logits ``[n, V]`` of the last n tokens."""
Score = Callable[[Predictor], list[float]]


@dataclass(frozen=True)
class Prompt:
    """What is trained on: the arguments of `sim.adapt`, and the same as texts of their own for explicit tuning.

    No texts: nothing is trained on. shared ``[n]``: what every text begins with that is scored after it; reads: about
    how many tokens are read after it (None: many).
    """

    arguments: dict[str, Tensor]
    texts: tuple[TrainText, ...]
    shared: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    reads: int | None = None


class Column(ABC):
    """One way to adapt, its name in tables, and the simulator that it is, or that it stands beside."""

    name: str
    sim: TintForCausalLM
    has_rate = True
    in_context = False
    """Whether a query is read after the demonstrations, whatever the format."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Return what its results depend on besides prompt and rate."""

    @abstractmethod
    def scores(self, prompt: Prompt, rates: Sequence[float], score: Score) -> list[list[float]]:
        """Return what `score` says of the predictions after training on `prompt` with each rate."""


class Simulated(Column):
    """A simulator, with its own gradient, steps and optimiser."""

    def __init__(self, name: str, sim: TintForCausalLM):
        self.name = name
        self.sim = sim

    @property
    def identity(self) -> str:
        return f"{type(self).__name__} {fingerprint(self.sim)} {self.sim.dtype}"

    def scores(self, prompt: Prompt, rates: Sequence[float], score: Score) -> list[list[float]]:
        if not prompt.texts:
            return [score(_Reader(self.sim, unchanged(self.sim), prompt.shared))] * len(rates)
        arguments = {name: tensor.to(self.sim.device) for name, tensor in prompt.arguments.items()}
        states = states_at(self.sim, arguments, rates, prompt.reads)
        return [score(_Reader(self.sim, state, prompt.shared)) for state in states]


class _Reader:
    """Predictions under one state. What all texts begin with is read once, and kept."""

    def __init__(self, sim: TintForCausalLM, state: AdaptedState, shared: Tensor):
        self.sim = sim
        self.state = state
        self.shared = shared
        self._cache: TintCache | None = None

    @torch.no_grad()
    def __call__(self, ids: Tensor, count: int) -> Tensor:
        known = len(self.shared)
        cache = None
        if known and len(ids) - known >= count and torch.equal(ids[:known], self.shared):
            cache = self._after_shared().branched()
            ids = ids[known:]
        return predict(self.sim, ids[None].to(self.sim.device), None, None, self.state, cache, count)[0].cpu()

    def _after_shared(self) -> TintCache:
        if self._cache is None:
            self._cache = TintCache(self.sim.continuation.carrying, self.state)
            predict(self.sim, self.shared[None].to(self.sim.device), None, None, self.state, self._cache, 1)
        return self._cache


class Streamed(Simulated):
    """A simulator whose weights go on learning from text to text: each is scored as by `Simulated`, and then the rest
    of it is learnt too."""

    def __init__(self, name: str, sim: TintForCausalLM):
        super().__init__(name, sim)
        self._states: list[AdaptedState] = []

    def begin(self, rates: Sequence[float]) -> None:
        """Forget what was learnt. rates: of each of the streams that follow."""
        self._states = [unchanged(self.sim)] * len(rates)

    def scores_along(self, ids: Tensor, train_tokens: int, rates: Sequence[float], score: Score) -> list[list[float]]:
        """Return what `score` says after learning the first tokens of a text ``[T]`` with each rate; learn the rest."""
        ids = ids[None].to(self.sim.device)
        columns = torch.arange(ids.shape[1], device=ids.device)[None]
        first = ids[:, :train_tokens]
        rest = {"train_mask": columns >= train_tokens - 1, "loss_mask": columns >= train_tokens}
        found: list[list[float]] = []
        for place, rate in enumerate(rates):
            state = self._states[place]
            state = self.sim.adapt(first, train_mask=torch.ones_like(first), inner_lr=rate, state=state)
            found.append(score(_Reader(self.sim, state, ids[0, :0])))
            self._states[place] = self.sim.adapt(ids, **rest, inner_lr=rate, state=state)
        return found


class Unchanged(Simulated):
    """The auxiliary as it was compiled, which no rate changes."""

    has_rate = False

    def scores(self, prompt: Prompt, rates: Sequence[float], score: Score) -> list[list[float]]:
        return super().scores(Prompt({}, (), prompt.shared), rates, score)


class InContext(Unchanged):
    """The unchanged auxiliary, which reads the demonstrations before a query: plain in-context learning."""

    in_context = True


class Explicit(Column):
    """The model itself, tuned by autograd on the parameters that a simulator updates."""

    def __init__(self, name: str, sim: TintForCausalLM, tuning: ExplicitTuning, normalised: bool):
        self.name = name
        self.sim = sim
        self.tuning = tuning
        self.normalised = normalised

    @property
    def identity(self) -> str:
        return f"explicit {self.normalised} {fingerprint(self.sim)} {self.sim.dtype}"

    def scores(self, prompt: Prompt, rates: Sequence[float], score: Score) -> list[list[float]]:
        def logits(ids: Tensor, count: int) -> Tensor:
            return self.tuning.logits(ids, count)

        if not prompt.texts:
            return [score(logits)] * len(rates)
        return self.tuning.after(prompt.texts, rates, self.normalised, lambda: score(logits))


def stored_rate(sim: TintForCausalLM) -> float:
    """Return the one rate that a simulator states; raise `OptionError` if it has several."""
    rate = sim.config.inner_lr
    if not isinstance(rate, int | float):
        raise OptionError("The simulator's learning rates differ by step or layer; pass rates to choose from, --rates.")
    return float(rate)
