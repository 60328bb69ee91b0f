"""Generation that goes on learning: from the prompt, and from what it writes, chunk by chunk.

The prompt is learnt as a stream, each chunk with all of the text before it as its context. Then, whenever so many
tokens more have been written, these are learnt, and the text is read again with the weights as they are then. The last
tokens, fewer than a chunk, are not learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationMode

from tintc.errors import OptionError
from tintc.runtime.adaptation.adapt import learn
from tintc.runtime.adaptation.continuation import base_weights
from tintc.runtime.adaptation.state import AdaptedWeights
from tintc.runtime.adaptation.stream import Window
from tintc.runtime.execution.rates import Rates
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.finite import warn_of_weights


@dataclass
class Learning:
    """What one call of `generate` learns by. every: tokens of a chunk; prompt ``[B, T]``; rates: of each prompt; state:
    the weights as they are (None at first: the stored ones); learnt: tokens of the text that are; ends: tokens that a
    text ends with; own: whether the state was made here."""

    sim: Any
    every: int
    prompt: Tensor
    rates: Rates | None
    state: AdaptedWeights | None
    learnt: int = 0
    ends: Tensor | None = None
    own: bool = False

    def start(self, generation_config: Any, mode: Any, mask: Tensor | None) -> None:
        """Learn the prompt. mask: of padding, for prompts that may be repeated."""
        if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
            raise OptionError(
                "With learn_every a text is learnt as it is written, token after token; leave out beams and drafts "
                "(num_beams, prompt_lookup_num_tokens)."
            )
        self.ends = generation_config._eos_token_tensor
        self.learnt = self.prompt.shape[1]
        if self.learnt > 1:
            if mask is not None:
                mask = mask[:: len(mask) // len(self.prompt)]
            given: dict[str, Any] = {"attention_mask": mask, "inner_lr": self.rates, "state": self.state}
            stream = self.sim.stream(self.prompt, self.every, self.learnt, frozen=False, bos=False, **given)
            self.state = stream.state
            self.own = True
        elif self.state is None:
            self.state = AdaptedWeights(self.sim, base_weights(self.sim), 1)

    def is_due(self, length: int) -> bool:
        """Return whether a text of so many tokens has a chunk to learn."""
        return length - self.learnt >= self.every

    def learn(self, ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> None:
        """Learn what was written since; ids, mask and positions ``[B, T]`` of the whole text.

        What follows the end of a text is padding, and is not learnt.
        """
        sim = self.sim
        valid = torch.ones_like(ids, dtype=torch.bool)
        if mask is not None:
            valid = mask.to(ids.device) != 0
        window = Window(ids, valid & ~self._ended(ids), self.learnt, self.learnt, ids.shape[1])
        inputs = sim.resolve(ids, **window.masks(), position_ids=positions)
        rates = self.rates
        if rates is not None:
            rates = rates.repeated(len(ids) // rates.batch)
        with torch.autocast(sim.device.type, enabled=False):
            self.state, _ = learn(sim, inputs, rates, "fused", self.state, consumed=self.own)
        warn_of_weights(sim, self.state.weights.values())
        self.own = True
        self.learnt = ids.shape[1]

    def _ended(self, ids: Tensor) -> Tensor:
        """Return which tokens come after one that ends what is written, ``[B, T]``."""
        ended = torch.zeros_like(ids, dtype=torch.bool)
        if self.ends is not None:
            written = self.prompt.shape[1]
            ends = torch.isin(ids[:, written:], self.ends.to(ids.device))
            ended[:, written + 1 :] = ends.long().cumsum(1)[:, :-1] > 0
        return ended

    @property
    def weights(self) -> AdaptedState:
        """Return the weights as they are, which a user may keep."""
        assert self.state is not None
        if not isinstance(self.state, AdaptedState):
            self.state = AdaptedState.of_weights(self.state)
        return self.state


def learning_of(sim: Any, every: object, prompt: Tensor | None, given: Mapping[str, Any]) -> Learning:
    """Return how a call of `generate` learns, before anything is run; given: its other arguments."""
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise OptionError(
            f"learn_every is {every!r}; pass the number of tokens after which they are learnt, at least 1."
        )
    if given.get("train_mask") is not None or given.get("loss_mask") is not None:
        raise OptionError("With learn_every the whole text is learnt, so train_mask and loss_mask are left out.")
    if sim.choose_executor() == "literal":
        raise OptionError("Literal execution writes from no state; with learn_every choose the executor auto or fused.")
    past = given.get("past_key_values")
    if past is not None and past.get_seq_length():
        raise OptionError("With learn_every the text is read anew; pass it whole, with state=, and no cache of it.")
    if prompt is None:
        raise OptionError("With learn_every there must be a prompt; pass input_ids.")
    return Learning(sim, every, prompt, sim.resolve_rates(given.get("inner_lr"), len(prompt)), given.get("state"))
