"""`sim.stream`: weights that keep learning along a text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tintc.errors import OptionError
from tintc.ir.finite import is_finite
from tintc.ir.special import opening_of
from tintc.runtime.adaptation.continuation import base_weights
from tintc.runtime.adaptation.state import AdaptedWeights, state_of
from tintc.runtime.adaptation.stream import Chunk, Text, check_chunks
from tintc.runtime.execution.rates import GivenRates, Rates
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.finite import warn_of_loss
from tintc.runtime.model.precision import in_its_own_dtype
from tintc.runtime.model.unsupported import where_it_can_run


@dataclass(frozen=True)
class StreamedChunk:
    """One chunk of a stream. start, stop: its tokens in the text; tokens ``[B]``: how many of each row were scored;
    streamed, frozen ``[B]``: their summed losses, in nats, under the weights that had learnt all chunks before, and
    under those that the stream began with (None where that was not asked for)."""

    start: int
    stop: int
    tokens: Tensor
    streamed: Tensor
    frozen: Tensor | None


class Stream:
    """A text, or a batch of texts, that the weights learn from chunk by chunk, each scored before.

    Nothing is run before it is asked for: iterating runs one chunk after the other, and whatever else is asked for runs
    those that are left. `len` is the number of chunks.
    """

    def __init__(
        self,
        sim: Any,
        text: Text,
        chunk_size: int,
        context: int,
        rates: Rates | None,
        state: AdaptedWeights | None,
        frozen: bool,
    ):
        """Keep what to run. state: what the weights are at first (None: as they are stored); frozen: whether to score
        under these too."""
        self._sim = sim
        self._text = text
        self._chunk_size = chunk_size
        self._context = context
        self._rates = rates
        self._state = state
        self._own = False
        self._frozen: AdaptedWeights | None = None
        if frozen:
            self._frozen = state or AdaptedWeights(sim, base_weights(sim), 1)
        self._done: list[StreamedChunk] = []
        self._running = False

    def __len__(self) -> int:
        return -(-self._text.length // self._chunk_size)

    def __iter__(self) -> Iterator[StreamedChunk]:
        for index in range(len(self)):
            if index == len(self._done):
                self._run_next()
            yield self._done[index]

    @property
    def chunks(self) -> list[StreamedChunk]:
        """Return all chunks."""
        return list(self)

    @property
    def state(self) -> AdaptedState:
        """Return what has been learnt from all of the text."""
        list(self)
        assert self._state is not None
        return AdaptedState.of_weights(self._state)

    @property
    def tokens(self) -> Tensor:
        """Return how many tokens were scored, ``[chunks, B]``."""
        return torch.stack([chunk.tokens for chunk in self])

    @property
    def streamed(self) -> Tensor:
        """Return the summed losses of every chunk under weights that had learnt those before, ``[chunks, B]``."""
        return torch.stack([chunk.streamed for chunk in self])

    @property
    def frozen(self) -> Tensor:
        """Return the summed losses under the weights that the stream began with, ``[chunks, B]``."""
        if self._frozen is None:
            raise OptionError("The stream was asked not to score under frozen weights; leave out frozen=False.")
        return torch.stack([chunk.frozen for chunk in self if chunk.frozen is not None])

    @property
    def perplexity_streamed(self) -> float:
        """Return that of all scored tokens together; infinite, or NaN, where the weights have been ruined."""
        return _perplexity(self.streamed, self.tokens)

    @property
    def perplexity_frozen(self) -> float:
        return _perplexity(self.frozen, self.tokens)

    @torch.no_grad()
    def _run_next(self) -> None:
        if self._running:
            raise OptionError("A chunk of this stream did not come to its end; start another stream.")
        self._running = True
        sim = self._sim
        window = self._text.window(len(self._done) * self._chunk_size, self._chunk_size, self._context)
        with torch.autocast(sim.device.type, enabled=False):
            chunk = Chunk(sim, window, sim.resolve(window.ids, **window.masks()), sim.choose_executor())
            frozen = self._frozen
            alike = frozen is not None and not self._own
            if alike:  # nothing has been learnt yet
                frozen = None
            self._state, streamed, other = chunk.learn(self._rates, self._state, frozen, self._own)
        if alike:
            other = streamed
        self._own = True
        self._done.append(StreamedChunk(window.start, window.stop, window.scored.sum(1), streamed, other))
        self._running = False
        if not is_finite(streamed):
            warn_of_loss(sim)


def _perplexity(losses: Tensor, tokens: Tensor) -> float:
    mean = float(losses.sum()) / max(1, int(tokens.sum()))
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf


class StreamingMixin:
    """The part of `TintForCausalLM` that learns along texts."""

    @where_it_can_run
    @in_its_own_dtype
    def stream(
        self: Any,
        input_ids: Tensor,
        chunk_size: int,
        context: int = 0,
        *,
        attention_mask: Tensor | None = None,
        inner_lr: GivenRates = None,
        state: AdaptedState | None = None,
        frozen: bool = True,
        bos: bool = True,
    ) -> Stream:
        """Score a text chunk by chunk, each before the weights learn from it; the text may be longer than the window.

        input_ids ``[T]``, or ``[B, T]``: every row learns by itself. chunk_size, context: tokens of a chunk, and most
        tokens before it that are read with it, under the present weights, and not trained on again. attention_mask
        ``[B, T]``: of texts of unequal lengths, which are chunked from their own first token on. inner_lr: as in a
        forward pass. state: what the weights are at first, as in `adapt`; it stays as it is. frozen: also score under
        the weights of the beginning. bos: every window begins with the special tokens that `sim.tokenizer` begins a
        text with.

        Raises `OptionError` for chunks that do not fit, and `InputError` for texts of fewer than two tokens.
        """
        if self._captures or self._edited:
            raise OptionError(
                "A stream runs parts of a text, where captures and edits, which are of whole passes, have no place; "
                "call it outside their blocks."
            )
        opening: tuple[int, ...] = ()
        if bos:
            opening = opening_of(self.tokenizer)
        text = Text.of(input_ids, attention_mask, opening)
        check_chunks(chunk_size, context, len(opening), self.layout.max_length, text.length)
        rates = self.resolve_rates(inner_lr, len(text.ids))
        before = None
        if state is not None:
            before = state_of(state, self)
            before.check_current()
            before.check(self, len(text.ids))
        return Stream(self, text, chunk_size, context, rates, before, frozen)
