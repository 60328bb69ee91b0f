"""Perplexity of a text's test tokens before and after the simulated descent, block by block."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tintc.errors import InputError, OptionError
from tintc.ir.functions import at_least_fp32
from tintc.runtime.processes import Processes

if TYPE_CHECKING:
    from tintc.runtime.model import TintForCausalLM

ALONE = Processes()
SHORTEST = 4
"""Tokens of the shortest text: two to train on, and more than one to score."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_blocks` found.

    perplexity_before, perplexity_after: of the test tokens of all blocks together, under the unchanged auxiliary and
    after the update; tokens_scored: their number; processes: how many shared the blocks; seconds: wall clock of the
    forward passes, and peak_rss_bytes: resident memory at its largest so far, both of the process that has most.
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
    inner_lr: float
    executor: str
    device: str
    processes: int = 1


@dataclass(frozen=True)
class Blocks:
    """A text cut into blocks: ids ``[n, block_size]``, of which the first `train_tokens` are trained on."""

    ids: Tensor
    train_tokens: int

    @property
    def train_mask(self) -> Tensor:
        """``[1, block_size]``."""
        return (torch.arange(self.ids.shape[1]) < self.train_tokens)[None]

    def step_masks(self, n_steps: int) -> Tensor:
        """``[N, 1, block_size]``: the train tokens cut into N parts, one for each step, that differ by at most one."""
        ends = torch.arange(n_steps + 1) * self.train_tokens // n_steps
        if int(ends.diff().min()) < 2:
            raise OptionError(
                f"{self.train_tokens} train tokens cannot be split among {n_steps} steps; each needs two. Raise the "
                "train fraction, or choose longer blocks."
            )
        places = torch.arange(self.ids.shape[1])
        return ((ends[:-1, None] <= places) & (places < ends[1:, None]))[:, None]


def evaluate_blocks(
    sim: TintForCausalLM,
    input_ids: Tensor,
    block_size: int | None = None,
    max_blocks: int | None = None,
    train_fraction: float | None = None,
    inner_lr: float | None = None,
    split_steps: bool = False,
    on_block: Callable[[int, int], None] | None = None,
    processes: Processes = ALONE,
) -> Evaluation:
    """Run `sim` on every block of a text and score its test tokens.

    input_ids ``[n]``. Each block is a text of its own: the first ``floor(train_fraction * block_size)`` tokens are
    trained on, the others are scored. block_size None: the whole text, or the longest the simulator takes; a partial
    block at the end is dropped. train_fraction None: the simulator's own; inner_lr None: the stored rates. split_steps:
    every step trains on a part of its own of the train tokens. on_block is called with (done, total). processes: those
    that share the blocks; sums are taken in the order of the blocks, so that every process finds what one alone would.

    Raises `InputError` for texts that are too short, or that training blows up on; `OptionError` for options out of
    range.
    """
    fraction = sim.config.train_fraction if train_fraction is None else train_fraction
    blocks = cut_blocks(input_ids, sim.layout.max_length, block_size, max_blocks, fraction)
    if inner_lr is not None and not (math.isfinite(inner_lr) and inner_lr >= 0):
        raise OptionError(f"The learning rate is {inner_lr}; it must be a finite number, zero or more.")
    mask = blocks.step_masks(sim.program.attributes["n_steps"]) if split_steps else blocks.train_mask
    count, own, start = len(blocks.ids), processes.share(len(blocks.ids)), time.perf_counter()
    losses: list[tuple[float, float]] = []
    for index in own:
        ids = blocks.ids[index][None].to(sim.device)
        with torch.no_grad():
            out = sim(ids, train_mask=mask, inner_lr=inner_lr, return_before=True)
        sides = (out.logits_before, out.logits)
        before, after = (held_out_loss(logits, ids, blocks.train_tokens) for logits in sides)
        losses.append((before, after))
        if on_block is not None:
            on_block(len(losses), len(own))
    before, after = (sum(column) for column in zip(*processes.gathered(losses), strict=True))
    used = processes.gathered([(time.perf_counter() - start, peak_rss_bytes())])
    scored = count * (blocks.ids.shape[1] - blocks.train_tokens)
    rate = sim.config.inner_lr if inner_lr is None else inner_lr
    return Evaluation(
        perplexity_before=perplexity(before, scored, "the auxiliary model does not fit this text"),
        perplexity_after=perplexity(after, scored, f"the learning rate {rate} is too large; choose a smaller one"),
        tokens_scored=scored,
        seconds=max(seconds for seconds, _ in used),
        peak_rss_bytes=max(peak for _, peak in used),
        blocks=count,
        block_size=blocks.ids.shape[1],
        train_tokens=blocks.train_tokens,
        train_fraction=fraction,
        inner_lr=rate,
        executor=sim.last_executor,
        device=str(sim.device),
        processes=processes.count,
    )


def cut_blocks(
    input_ids: Tensor, max_length: int, block_size: int | None, max_blocks: int | None, train_fraction: float
) -> Blocks:
    """`input_ids [n]` as blocks; raises as `evaluate_blocks` does."""
    if input_ids.dim() != 1:
        raise InputError(f"The text must be one row of token ids, not of shape {tuple(input_ids.shape)}.")
    length = input_ids.shape[0]
    if length < SHORTEST:
        found = "is empty" if length == 0 else f"has only {length} token{'s' if length > 1 else ''}"
        raise InputError(f"The text {found}; pass at least {SHORTEST} tokens.")
    size = min(length, max_length) if block_size is None else block_size
    trained = train_tokens(size, train_fraction)
    if size > max_length:
        raise OptionError(f"The block size is {size}; this simulator was compiled for at most {max_length} tokens.")
    if size > length:
        raise InputError(f"The text has {length} tokens, which is less than one block of {size}; cut shorter ones.")
    if max_blocks is not None and max_blocks < 1:
        raise OptionError(f"The number of blocks is {max_blocks}; it must be at least 1.")
    count = length // size if max_blocks is None else min(length // size, max_blocks)
    return Blocks(input_ids[: count * size].reshape(count, size), trained)


def train_tokens(size: int, fraction: float) -> int:
    """How many of a block's tokens are trained on; `OptionError` unless some are, and some are left."""
    if size < SHORTEST:
        raise OptionError(f"The block size is {size}; it must be at least {SHORTEST} tokens.")
    if not 0 < fraction < 1:
        raise OptionError(f"The train fraction is {fraction}; it must lie between 0 and 1, both excluded.")
    count = math.floor(fraction * size)
    if count < 2:
        raise OptionError(
            f"The train fraction {fraction} leaves {count} of {size} tokens to train on; two are needed. Raise it, or "
            "choose longer blocks."
        )
    return count


def held_out_loss(logits: Tensor, ids: Tensor, start: int) -> float:
    """Summed cross-entropy of the targets at positions ``>= start``; logits ``[B, T, V]``, ids ``[B, T]``."""
    scored = at_least_fp32(logits[:, start - 1 : -1].flatten(0, 1))
    return float(F.cross_entropy(scored, ids[:, start:].flatten(), reduction="sum"))


def perplexity(loss: float, count: int, cause: str) -> float:
    """exp of the mean loss; raises `InputError`, with the likely cause, when it is not a finite number."""
    mean = loss / count
    if not mean < 700:
        raise InputError(f"The perplexity is not a finite number: {cause}.")
    return math.exp(mean)


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far. Linux's own mark of it: `ru_maxrss` starts from the size of the
    process that started this one."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
