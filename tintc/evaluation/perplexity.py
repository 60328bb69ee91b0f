"""Perplexity of a text's test tokens before and after the simulated descent, block by block."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tintc.errors import InputError, OptionError
from tintc.evaluation.blocks import Blocks, cut_blocks
from tintc.evaluation.hints import hint_of
from tintc.evaluation.processes import Processes
from tintc.evaluation.rate_sweep import sweep
from tintc.ir.functions import at_least_fp32
from tintc.ir.special import opening_of
from tintc.runtime.execution.available import peak_rss_bytes
from tintc.runtime.execution.rates import GivenRates

if TYPE_CHECKING:
    from tintc.runtime.model.causal_lm import TintForCausalLM

ALONE = Processes()
HIGHEST = 700
"""Mean loss above which its perplexity is no finite number."""


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate_blocks`.

    perplexity_before, perplexity_after: of the test tokens of all blocks together, under the unchanged auxiliary and
    after the update; tokens_scored: their number; processes: how many shared the blocks; seconds: wall clock of the
    forward passes, and peak_rss_bytes: resident memory at its largest so far, both of the process that has most;
    opening_tokens: special tokens that every block begins with, counted in `block_size`; tokens_left_out: those at the
    text's end that make no block; hint: what to try where the update made it worse; rates: where several were asked
    for, ``{"inner_lr", "perplexity_after"}`` of each (None: not a finite number), of which the best is above.
    """

    perplexity_before: float
    perplexity_after: float
    tokens_scored: int
    seconds: float
    peak_rss_bytes: int
    blocks: int
    block_size: int
    train_tokens: int
    train_fraction: float
    inner_lr: Any
    executor: str
    device: str
    processes: int = 1
    opening_tokens: int = 0
    tokens_left_out: int = 0
    hint: str | None = None
    rates: list[dict[str, float | None]] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return its fields; `rates` only where several were asked for."""
        values = asdict(self)
        if self.rates is None:
            del values["rates"]
        return values


def evaluate_blocks(
    sim: TintForCausalLM,
    input_ids: Tensor,
    block_size: int | None = None,
    max_blocks: int | None = None,
    train_fraction: float | None = None,
    inner_lr: GivenRates = None,
    split_steps: bool = False,
    on_block: Callable[[int, int], None] | None = None,
    processes: Processes = ALONE,
    bos: bool = True,
    partial: bool = False,
    rates: Sequence[float] | None = None,
) -> Evaluation:
    """Run `sim` on every block of a text and score its test tokens.

    input_ids ``[n]``. Each block is a text of its own: the first ``floor(train_fraction * block_size)`` tokens are
    trained on, the others are scored. block_size None: the whole text, or the longest the simulator takes. bos: every
    block begins with the special tokens that `sim.tokenizer` begins a text with, which count in block_size and are not
    scored; False: blocks are pieces of `input_ids` as they are. partial: score a shorter block at the end too.
    train_fraction None: the simulator's own. inner_lr None: the stored rates; else as in a forward pass of one text.
    rates: several rates to compare, in its place.
    split_steps: every step trains on a part of its own of the train tokens. on_block is called with (done, total).
    processes: those that share the blocks; sums are taken in the order of the blocks, so that every process finds what
    one alone would.

    Raises `InputError` for texts that are too short, or that training blows up on; `OptionError` for options out of
    range.
    """
    fraction = train_fraction
    if fraction is None:
        fraction = sim.config.train_fraction
    opening = opening_of(sim.tokenizer) if bos else ()
    blocks = cut_blocks(input_ids, sim.layout.max_length, block_size, max_blocks, fraction, opening, partial)
    compared = _compared(sim, inner_lr, rates)
    steps = sim.program.attributes["n_steps"] * split_steps
    sums = _summed(sim, blocks, steps, inner_lr, rates, processes, on_block)
    tried: list[Any] = [sim.config.inner_lr if rate is None else rate for rate in compared]
    best = _shown(tried[sums.best])
    trained = blocks[0].train_tokens
    before, after = sums.perplexities(best)
    return Evaluation(
        perplexity_before=before,
        perplexity_after=after,
        tokens_scored=sums.scored,
        seconds=sums.seconds,
        peak_rss_bytes=sums.peak_rss_bytes,
        blocks=len(blocks),
        block_size=blocks.size,
        train_tokens=trained,
        train_fraction=fraction,
        inner_lr=best,
        executor=sim.last_executor,
        device=str(sim.device),
        processes=processes.count,
        opening_tokens=blocks.opening,
        tokens_left_out=blocks.left_out,
        hint=hint_of(before, after, tried, f"{trained} in a block", sim.config.optimizer),
        rates=sums.by_rate(rates),
    )


def _compared(sim: TintForCausalLM, inner_lr: GivenRates, rates: Sequence[float] | None) -> Sequence[GivenRates]:
    """Return the rates that a text is run at; raise `OptionError` for one that the simulator does not take, or if there
    are none."""
    if rates is not None and not rates:
        raise OptionError("There is no learning rate to compare; pass at least one in rates.")
    compared: Sequence[GivenRates] = [inner_lr]
    if rates is not None:
        compared = rates
    for rate in compared:
        sim.resolve_rates(rate, 1)
    return compared


class _Sums(NamedTuple):
    """Losses of all blocks, summed, before the update, and after it at each rate; and how many tokens they are of."""

    before: float
    after: Sequence[float]
    scored: int
    seconds: float
    peak_rss_bytes: int

    @property
    def best(self) -> int:
        """Return which rate has the smallest loss."""
        return min(range(len(self.after)), key=lambda index: (math.isnan(self.after[index]), self.after[index]))

    def perplexities(self, rate: Any) -> tuple[float, float]:
        """Return those before the update, and after it at the best rate, which is `rate`; raise `InputError` for one
        that is not a finite number."""
        before = perplexity(self.before, self.scored, "the auxiliary model does not fit this text")
        cause = f"the learning rate {rate} is too large; choose a smaller one"
        return before, perplexity(self.after[self.best], self.scored, cause)

    def by_rate(self, rates: Sequence[float] | None) -> list[dict[str, float | None]] | None:
        """Return each rate with its perplexity after the update, None if there was one rate alone."""
        if rates is None:
            return None
        return [_of_rate(rate, loss, self.scored) for rate, loss in zip(rates, self.after, strict=True)]


def _summed(
    sim: TintForCausalLM,
    blocks: Blocks,
    steps: int,
    inner_lr: GivenRates,
    rates: Sequence[float] | None,
    processes: Processes,
    on_block: Callable[[int, int], None] | None,
) -> _Sums:
    """Run every block, each in one of the processes; arguments as of `evaluate_blocks` and `_losses`."""
    own = processes.share(len(blocks))
    start = time.perf_counter()
    losses: list[list[float]] = []
    for index in own:
        losses.append(_losses(sim, blocks, index, steps, inner_lr, rates))
        if on_block is not None:
            on_block(len(losses), len(own))
    before, *after = (sum(column) for column in zip(*processes.gathered(losses), strict=True))
    used = processes.gathered([(time.perf_counter() - start, peak_rss_bytes())])
    seconds, peaks = zip(*used, strict=True)
    return _Sums(before, after, sum(block.scored for block in blocks), max(seconds), max(peaks))


def _losses(
    sim: TintForCausalLM, blocks: Blocks, index: int, steps: int, inner_lr: GivenRates, rates: Sequence[float] | None
) -> list[float]:
    """Return a block's loss before the update, and after the update at each rate.

    steps: among which its train tokens are split (0: they are not).
    """
    block = blocks[index]
    ids = block.ids[None].to(sim.device)
    mask = block.train_mask
    if steps:
        mask = block.step_masks(steps)

    def score(logits: Tensor) -> float:
        return held_out_loss(logits, ids, block.start)

    if rates is not None:
        before, after = sweep(sim, ids, mask, rates, score)
        return [before, *after]
    with torch.no_grad():
        out = sim(ids, train_mask=mask, inner_lr=inner_lr, return_before=True)
    return [score(out.logits_before), score(out.logits)]


def _shown(rate: Any) -> Any:
    """Return a rate as numbers, lists and mappings of these."""
    if isinstance(rate, Tensor):
        return rate.tolist()
    if isinstance(rate, Mapping):
        return {str(layer): _shown(number) for layer, number in rate.items()}
    return rate


def _of_rate(rate: float, loss: float, count: int) -> dict[str, float | None]:
    after = None
    if loss / count < HIGHEST:
        after = math.exp(loss / count)
    return {"inner_lr": rate, "perplexity_after": after}


def held_out_loss(logits: Tensor, ids: Tensor, start: int) -> float:
    """Return the summed cross-entropy of targets at positions ``>= start``; logits ``[B, T, V]``, ids ``[B, T]``."""
    scored = at_least_fp32(logits[:, start - 1 : -1].flatten(0, 1))
    return float(F.cross_entropy(scored, ids[:, start:].flatten(), reduction="sum"))


def perplexity(loss: float, count: int, cause: str) -> float:
    """Return exp of the mean loss; raise `InputError`, with the likely cause, when it is not a finite number."""
    mean = loss / count
    if not mean < HIGHEST:
        raise InputError(f"The perplexity is not a finite number: {cause}.")
    return math.exp(mean)
