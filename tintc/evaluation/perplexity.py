"""Perplexity of a text's test tokens before and after the simulated descent, block by block."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tintc.errors import InputError, OptionError
from tintc.evaluation.blocks import Blocks, cut_blocks
from tintc.evaluation.processes import Processes
from tintc.evaluation.rate_sweep import sweep
from tintc.ir.functions import at_least_fp32
from tintc.ir.special import opening_of
from tintc.runtime.execution.rates import GivenRates

if TYPE_CHECKING:
    from tintc.runtime.model.causal_lm import TintForCausalLM

ALONE = Processes()
NEAR = (0.3, 0.1, 0.03)
"""Of a rate that is somewhat too large, what to try: rates that are a little smaller."""
FAR = (0.1, 0.01, 1e-3, 1e-4)
"""Of a rate that ruins the model, what to try: other orders of magnitude."""
RUINED = 2.0
"""Times the perplexity before the update, from which on the model is ruined."""
HOPELESS = 1e-2
HOPELESS_NORMALISED = 1.0
"""Rates of plain and of normalised steps that hardly any model gains from: of larger ones, what is suggested is smaller
than this."""
HIGHEST = 700
"""Mean loss above which its perplexity is no finite number."""
ROUNDING = 1e-6
"""A relative difference between perplexities below which neither is the worse."""


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
    train_fraction None: the simulator's own. inner_lr
    None: the stored rates; else as in a forward pass of one text. rates: several rates to compare, in its place.
    split_steps: every step trains on a part of its own of the train tokens. on_block is called with (done, total).
    processes: those that share the blocks; sums are taken in the order of the blocks, so that every process finds what
    one alone would.

    Raises `InputError` for texts that are too short, or that training blows up on; `OptionError` for options out of
    range.
    """
    fraction = train_fraction
    if fraction is None:
        fraction = sim.config.train_fraction
    opening: Sequence[int] = ()
    if bos:
        opening = opening_of(sim.tokenizer)
    limit = sim.layout.max_length
    blocks = cut_blocks(input_ids, limit, block_size, max_blocks, fraction, opening, partial)
    if rates is not None and not rates:
        raise OptionError("There is no learning rate to compare; pass at least one in rates.")
    compared: Sequence[GivenRates] = [inner_lr]
    if rates is not None:
        compared = rates
    for rate in compared:
        sim.resolve_rates(rate, 1)
    own = processes.share(len(blocks))
    start = time.perf_counter()
    steps = sim.program.attributes["n_steps"] * split_steps
    losses: list[list[float]] = []
    for index in own:
        losses.append(_losses(sim, blocks, index, steps, inner_lr, rates))
        if on_block is not None:
            on_block(len(losses), len(own))
    before, *after = (sum(column) for column in zip(*processes.gathered(losses), strict=True))
    used = processes.gathered([(time.perf_counter() - start, peak_rss_bytes())])
    scored = sum(block.scored for block in blocks)
    tried: list[Any] = [sim.config.inner_lr if rate is None else rate for rate in compared]
    by_rate = None
    if rates is not None:
        by_rate = [_of_rate(rate, loss, scored) for rate, loss in zip(rates, after, strict=True)]
    best = min(range(len(tried)), key=lambda index: (math.isnan(after[index]), after[index]))
    trained = blocks[0].train_tokens
    perplexity_before = perplexity(before, scored, "the auxiliary model does not fit this text")
    perplexity_after = perplexity(
        after[best], scored, f"the learning rate {_shown(tried[best])} is too large; choose a smaller one"
    )
    return Evaluation(
        perplexity_before=perplexity_before,
        perplexity_after=perplexity_after,
        tokens_scored=scored,
        seconds=max(seconds for seconds, _ in used),
        peak_rss_bytes=max(peak for _, peak in used),
        blocks=len(blocks),
        block_size=blocks.size,
        train_tokens=trained,
        train_fraction=fraction,
        inner_lr=_shown(tried[best]),
        executor=sim.last_executor,
        device=str(sim.device),
        processes=processes.count,
        opening_tokens=blocks.opening,
        tokens_left_out=blocks.left_out,
        hint=hint_of(perplexity_before, perplexity_after, tried, f"{trained} in a block", sim.config.optimizer),
        rates=by_rate,
    )


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


def hint_of(before: float, after: float, tried: Sequence[Any], summed: str, optimizer: str = "sgd") -> str | None:
    """Return what to say of an update that made it worse, None if it did not.

    summed: over how many train tokens gradients were, as a part of the sentence; optimizer: what a step is made of.
    """
    if after <= before * (1 + ROUNDING):
        return None
    if optimizer == "normalized":
        hopeless = HOPELESS_NORMALISED
        why = "The step is as long as the learning rate says, whatever the gradient, so it may be too large"
    else:
        hopeless = HOPELESS
        why = f"Gradients are summed over train tokens, here {summed}, so the step may be too large for so many"
    why = f"The text is predicted worse after the update than before. {why}"
    numbers = [rate for rate in tried if isinstance(rate, int | float)]
    if not numbers:
        return f"{why}; try smaller learning rates."
    start = min(*numbers, hopeless)
    factors = NEAR
    if after > RUINED * before or min(numbers) > hopeless:
        factors = FAR
    smaller = ",".join(f"{start * factor:.1g}" for factor in factors)
    return f"{why}; try smaller learning rates, such as --lr {smaller}."


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


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process so far.

    Linux's own mark of it: `ru_maxrss` starts from the size of the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if sys.platform == "darwin":
            return peak
        return peak * 1024
