"""Streams: a text, or a batch of texts, cut into chunks, each scored before the weights learn from it.

The window of a chunk is what the tokenizer begins a text with, up to `context` tokens before the chunk, and the chunk.
Every token of the chunk is scored, and is a target, once in the whole stream, but for one that nothing comes before. So
the train tokens of a window are the chunk and the token that predicts its first: descent sums over the positions whose
next token is the chunk's. All else in front is read under the present weights and not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.errors import InputError, OptionError
from tintc.ir.core import Value
from tintc.ir.functions import at_least_fp32
from tintc.ir.inputs import Inputs, check_ids, matching
from tintc.runtime.adaptation.adapt import learn, starts_of
from tintc.runtime.adaptation.continuation import AdaptiveSimulator
from tintc.runtime.adaptation.continued_run import ContinuedRun
from tintc.runtime.adaptation.pending import Renamed
from tintc.runtime.adaptation.state import AdaptedWeights
from tintc.runtime.execution.rates import Rates
from tintc.runtime.execution.run import execute_program

MOST_LOGITS = 1 << 24
"""Numbers of the logits that are taken at a time."""


@dataclass(frozen=True)
class Window:
    """What one chunk is run on. ids, valid ``[B, n]``: tokens, and which are no padding; chunk: the column of the
    chunk's first token; start, stop: the chunk's tokens in the text."""

    ids: Tensor
    valid: Tensor
    chunk: int
    start: int
    stop: int

    @property
    def first(self) -> int:
        """Return the column from which on tokens are scored: the chunk's first that another comes before."""
        return max(self.chunk, 1)

    @property
    def scored(self) -> Tensor:
        """Return which of the tokens from column `first` on are scored, ``[B, m]`` bool."""
        return self.valid[:, self.first :] & self.valid[:, self.first - 1 : -1]

    def masks(self) -> dict[str, Tensor]:
        """Return the masks of a forward pass. A row that has ended shows one token, and is not trained on."""
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        seen = self.valid.clone()
        seen[~seen.any(1), 0] = True
        masks = {
            "train_mask": self.valid & (columns >= self.chunk - 1),
            "loss_mask": (columns >= self.chunk).expand_as(self.valid),
        }
        if not bool(seen.all()):
            masks["attention_mask"] = seen
        return masks


@dataclass(frozen=True)
class Text:
    """Texts to stream, ``ids [B, T]``, each from its first token on, with padding after the shorter ones; opening: what
    every window begins with."""

    ids: Tensor
    valid: Tensor
    opening: Tensor

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor | None, opening: Sequence[int]) -> Text:
        """Return the texts ``[T]`` or ``[B, T]``, without the opening where they begin with it already.

        Raises `InputError` for what is none, and for a text without two tokens.
        """
        if isinstance(input_ids, Tensor) and input_ids.dim() == 1:
            input_ids = input_ids[None]
        ids = check_ids(input_ids).long()
        mask = torch.ones_like(ids)
        if attention_mask is not None:
            mask = matching("attention_mask", attention_mask, tuple(ids.shape), ids.device)
        begin = torch.tensor(opening, dtype=torch.long, device=ids.device)
        rows = [_without(row[kept != 0], begin) for row, kept in zip(ids, mask, strict=True)]
        shortest = min((len(row) for row in rows), default=0) + len(begin)
        if shortest < 2 or not min(len(row) for row in rows):
            raise InputError(f"A text has {shortest} tokens; a stream scores each by those before it: pass at least 2.")
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        return cls(padded, torch.arange(padded.shape[1], device=ids.device) < lengths[:, None], begin)

    @property
    def length(self) -> int:
        """Return the tokens of the longest."""
        return self.ids.shape[1]

    def window(self, start: int, chunk_size: int, context: int) -> Window:
        """Return the window of the chunk that begins at token `start`."""
        stop = min(start + chunk_size, self.length)
        before = max(0, start - context)
        opening = self.opening.expand(len(self.ids), -1)
        ids = torch.cat((opening, self.ids[:, before:stop]), 1)
        valid = torch.cat((torch.ones_like(opening, dtype=torch.bool), self.valid[:, before:stop]), 1)
        return Window(ids, valid, opening.shape[1] + start - before, start, stop)


def _without(ids: Tensor, begin: Tensor) -> Tensor:
    """Return a text without what it begins with."""
    if len(begin) and torch.equal(ids[: len(begin)], begin):
        return ids[len(begin) :]
    return ids


def check_chunks(chunk_size: object, context: object, opening: int, limit: int, length: int) -> None:
    """Raise `OptionError` unless windows of such chunks can be run.

    opening: tokens that each begins with; limit: the longest text that is run; length: of the text.
    """
    for name, value, least in (("chunk size", chunk_size, 1), ("context", context, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise OptionError(f"The {name} is {value!r}; it must be a number of tokens, at least {least}.")
    assert isinstance(chunk_size, int) and isinstance(context, int)
    longest = opening + min(length, context + chunk_size)
    if longest > limit:
        special = ""
        if opening:
            special = f", and {opening} special in front,"
        raise OptionError(
            f"A chunk of {chunk_size} tokens with {context} before it{special} would be {longest}; this simulator was "
            f"compiled for at most {limit}. Choose smaller ones."
        )


@dataclass(frozen=True)
class Chunk:
    """What one chunk was run with: a simulator, its inputs ``[B, n]``, and by which executor."""

    sim: AdaptiveSimulator
    window: Window
    inputs: Inputs
    executor: str

    def learn(
        self, rates: Rates | None, state: AdaptedWeights | None, frozen: AdaptedWeights | None, consumed: bool
    ) -> tuple[AdaptedWeights, Tensor, Tensor | None]:
        """Return the weights that have learnt the chunk, and its losses ``[B]``, summed over its tokens.

        They are those under the weights of `state` (None: the stored ones), which have not learnt it yet, and under
        those of `frozen` (None: not asked for). consumed: nobody needs the state any more.
        """
        scored = self.sim.program.outputs["logits_before"]
        outputs = {"scored": scored}
        below = self.sim.continuation.above.inputs
        if self.executor != "literal":
            (outputs["scored"],) = self.sim.program.producers()[scored].operands
            if frozen is not None:
                outputs |= {value.name: value for value in below}
        learnt, results = learn(self.sim, self.inputs, rates, self.executor, state, outputs, consumed)
        losses = self._losses(results["scored"])
        if frozen is None:
            return learnt, losses, None
        if self.executor == "literal":
            return learnt, losses, self._losses(self._literal_logits(frozen))
        return learnt, losses, self._losses(self._hidden(frozen, {value: results[value.name] for value in below}))

    def _hidden(self, frozen: AdaptedWeights, below: Mapping[Value, Tensor]) -> Tensor:
        """Return what the head reads under other weights, from what does not depend on them: layers below the updated
        ones are run once for both."""
        seen = None
        if not self.inputs.plain:
            seen = self.inputs.allowed
        plan = self.sim.continuation.above
        run = ContinuedRun(self.sim, self.inputs, self.inputs.position_ids, seen, frozen.examples, plan)
        return run.hidden({**frozen.values, **below})

    def _literal_logits(self, frozen: AdaptedWeights) -> Tensor:
        starts = starts_of(self.sim, frozen, self.inputs.shape[0], "literal", Renamed())
        program = replace(self.sim.program, outputs={"scored": self.sim.program.outputs["logits_before"]})
        return execute_program(self.sim, program, self.inputs, None, "literal", starts)["scored"]

    def _losses(self, before: Tensor) -> Tensor:
        """Return the summed cross-entropy of each row's scored tokens, ``[B]``, in fp64.

        before: logits ``[B, n, V]`` of literal execution, or what the head reads in fused.
        """
        window = self.window
        before = before[:, window.first - 1 : -1]
        targets = window.ids[:, window.first :]
        total = torch.zeros(len(targets), dtype=torch.float64, device=targets.device)
        run = ContinuedRun(self.sim, self.inputs, self.inputs.position_ids)
        some = max(1, MOST_LOGITS // (len(targets) * self.sim.config.vocab_size))
        parts = zip(before.split(some, 1), targets.split(some, 1), window.scored.split(some, 1), strict=True)
        for logits, ids, scored in parts:
            if self.executor != "literal":
                logits = run.tail(logits)
            losses = F.cross_entropy(at_least_fp32(logits).transpose(1, 2), ids, reduction="none")
            total += (losses * scored).double().sum(1)
        return total
