"""Table 1 of the paper: train on the first part of every block of a text, and predict the rest.

Rows of a dataset are tokenised one by one, empty ones left out, joined, and cut into blocks. The rate of every column
is chosen on another text, where there are several.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tintc.errors import InputError
from tintc.evaluation.blocks import Block, Blocks
from tintc.evaluation.experiments.bootstrap import interval
from tintc.evaluation.experiments.columns import Column, Predictor, Prompt, Streamed, stored_rate
from tintc.evaluation.experiments.explicit import TrainText
from tintc.evaluation.experiments.records import Records
from tintc.evaluation.processes import Processes
from tintc.ir.functions import at_least_fp32

OnBlock = Callable[[], None]


@dataclass(frozen=True)
class Row:
    """A line of the table. tokens: that are scored; interval: the bootstrap's, over blocks, at 95 %.

    rates: those that were taken, by column; columns without a rate are not in it. A perplexity that is no finite
    number is None. block_losses: the summed loss of each block's test tokens, for comparisons block by block.
    """

    train_fraction: float
    blocks: int
    tokens: int
    rates: dict[str, float]
    perplexity: dict[str, float | None]
    interval: dict[str, list[float] | None]
    block_losses: dict[str, list[float | None]]


def evaluate_row(
    columns: Sequence[Column],
    blocks: Blocks,
    validation: Blocks | None,
    rates: Sequence[float],
    train_fraction: float,
    records: Records,
    processes: Processes,
    on_block: OnBlock = lambda: None,
) -> Row:
    """Return perplexities of the blocks' test tokens under every column.

    rates: several to choose from on the blocks of `validation`, or one, or none: every column takes the rate that its
    simulator stores. on_block is called after each block of each
    column. Raises `InputError` if a column has no rate with a finite result.
    """
    taken: dict[str, float] = {}
    perplexities: dict[str, float | None] = {}
    intervals: dict[str, list[float] | None] = {}
    by_block: dict[str, list[float | None]] = {}
    for column in columns:
        rate = 0.0
        if column.has_rate:
            if not rates:
                rate = stored_rate(column.sim)
            elif validation is None or len(rates) == 1:
                rate = rates[0]
            else:
                rate = _best_rate(column, validation, rates, records, processes, on_block)
            taken[column.name] = rate
        losses = [values[0] for values in _losses(column, blocks, [rate], records, processes, on_block)]
        perplexities[column.name] = _perplexity(sum(losses), blocks)
        intervals[column.name] = _interval(losses, blocks)
        by_block[column.name] = [loss if math.isfinite(loss) else None for loss in losses]
    tokens = sum(block.scored for block in blocks)
    return Row(train_fraction, len(blocks), tokens, taken, perplexities, intervals, by_block)


def _best_rate(
    column: Column,
    blocks: Blocks,
    rates: Sequence[float],
    records: Records,
    processes: Processes,
    on_block: OnBlock,
) -> float:
    """Return the rate with the least loss on these blocks."""
    losses = _losses(column, blocks, rates, records, processes, on_block)
    totals = [sum(block[index] for block in losses) for index in range(len(rates))]
    finite = [index for index, total in enumerate(totals) if math.isfinite(total)]
    if not finite:
        raise InputError(f"No rate gives {column.name} a finite loss on the validation text; pass smaller ones.")
    return rates[min(finite, key=lambda index: totals[index])]


def _losses(
    column: Column,
    blocks: Blocks,
    rates: Sequence[float],
    records: Records,
    processes: Processes,
    on_block: OnBlock,
) -> list[list[float]]:
    """Return the summed loss of every block's test tokens at each rate, of all processes' blocks."""
    if isinstance(column, Streamed):
        return _losses_along(column, blocks, rates, records, processes, on_block)
    identity = column.identity
    own: list[list[float]] = []
    for index in processes.share(len(blocks)):
        block = blocks[index]
        key = [column.name, identity, _digest(block), list(rates) * column.has_rate]
        losses = records.get(key)
        if losses is None:
            scored = column.scores(_prompt(block), rates, lambda predictor, block=block: [_loss(predictor, block)])
            losses = [values[0] for values in scored]
            records.put(key, losses)
        own.append(losses)
        on_block()
    return processes.gathered(own)


def _losses_along(
    column: Streamed,
    blocks: Blocks,
    rates: Sequence[float],
    records: Records,
    processes: Processes,
    on_block: OnBlock,
) -> list[list[float]]:
    """Return the same of a column that learns along the blocks: every process goes all the way, as each block needs
    those before it."""
    key = [column.name, column.identity, _digest(*blocks), list(rates)]
    losses: list[list[float]] | None = records.get(key)
    if losses is None:
        losses = []
        column.begin(rates)
        for block in blocks:

            def score(predictor: Predictor, block: Block = block) -> list[float]:
                return [_loss(predictor, block)]

            losses.append([values[0] for values in column.scores_along(block.ids, block.train_tokens, rates, score)])
            on_block()
        if processes.main:
            records.put(key, losses)
    return losses


def _prompt(block: Block) -> Prompt:
    """Return the train tokens of a block: what follows them has no part in the training."""
    ids = block.ids[: block.train_tokens]
    targets = torch.ones_like(ids, dtype=torch.bool)
    targets[0] = False
    mask = torch.ones_like(ids)
    return Prompt({"input_ids": ids[None], "train_mask": mask[None]}, (TrainText(ids, targets),))


def _loss(predictor: Predictor, block: Block) -> float:
    """Return the summed cross-entropy of a block's test tokens, or NaN."""
    scored = block.scored
    logits = at_least_fp32(predictor(block.ids, scored + 1)[:-1])
    return float(F.cross_entropy(logits, block.ids[-scored:], reduction="sum"))


def _digest(*blocks: Block) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block.ids.numpy().tobytes() + f" {block.train_tokens} {block.start}".encode())
    return digest.hexdigest()


def _perplexity(loss: float, blocks: Blocks) -> float | None:
    mean = loss / sum(block.scored for block in blocks)
    if not mean < math.log(1e300):
        return None
    return math.exp(mean)


def _interval(losses: Sequence[float], blocks: Blocks) -> list[float] | None:
    """Return the interval of the perplexity if blocks are drawn again; None if it is no finite number."""

    def of_sums(sums: Tensor) -> Tensor:
        return (sums[:, 0] / sums[:, 1]).exp()

    ends = interval([[loss, block.scored] for loss, block in zip(losses, blocks, strict=True)], of_sums)
    if not all(map(math.isfinite, ends)):
        return None
    return ends
