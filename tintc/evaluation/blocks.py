"""A text cut into blocks, each a text of its own: it begins as the tokenizer begins one, and its first part is trained
on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.errors import InputError, OptionError

SHORTEST = 4
"""Tokens of the shortest text: two to train on, and more than one to score."""


@dataclass(frozen=True)
class Block:
    """A piece of a text: ids ``[T]``, of which the first `train_tokens` are trained on and those from `start` on are
    scored."""

    ids: Tensor
    train_tokens: int
    start: int

    @property
    def train_mask(self) -> Tensor:
        """Return ``[1, T]`` bool."""
        return (torch.arange(len(self.ids)) < self.train_tokens)[None]

    @property
    def scored(self) -> int:
        """Return how many tokens are scored."""
        return len(self.ids) - self.start

    def step_masks(self, n_steps: int) -> Tensor:
        """Return ``[N, 1, T]``: the train tokens cut into N parts, one for each step, that differ by at most one."""
        ends = torch.arange(n_steps + 1) * self.train_tokens // n_steps
        if int(ends.diff().min()) < 2:
            raise OptionError(
                f"{self.train_tokens} train tokens cannot be split among {n_steps} steps; each needs two. Raise the "
                "train fraction, or choose longer blocks."
            )
        places = torch.arange(len(self.ids))
        return ((ends[:-1, None] <= places) & (places < ends[1:, None]))[:, None]


@dataclass(frozen=True)
class Blocks:
    """The blocks that a text was cut into.

    size: tokens of a whole block, the last may be shorter; opening: tokens that each begins with, which are counted;
    left_out: tokens at the text's end that make no block (0 where a maximum of blocks was reached).
    """

    blocks: tuple[Block, ...]
    size: int
    opening: int
    left_out: int

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Block:
        return self.blocks[index]

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks)


def cut_blocks(
    input_ids: Tensor,
    max_length: int,
    block_size: int | None,
    max_blocks: int | None,
    train_fraction: float,
    opening: Sequence[int] = (),
    partial: bool = False,
) -> Blocks:
    """Return `input_ids [n]` as blocks of `block_size` tokens (None: the whole text, or the longest that is taken).

    opening: what every block begins with, counted in its size; where the text begins with it already it is not doubled.
    partial: keep a shorter block at the end, if it is long enough. Raises `InputError` for texts that are too short,
    `OptionError` for options out of range.
    """
    if input_ids.dim() != 1:
        raise InputError(f"The text must be one row of token ids, not of shape {tuple(input_ids.shape)}.")
    begin = torch.tensor(opening, dtype=input_ids.dtype, device=input_ids.device)
    text = _without(input_ids, begin)
    length = len(begin) + len(text)
    shortest = SHORTEST + max(0, len(begin) - 1)
    if length < shortest:
        amount = {0: "is empty", 1: "has only 1 token"}.get(length, f"has only {length} tokens")
        raise InputError(f"The text {amount}; pass at least {shortest} tokens.")
    size = block_size
    if size is None:
        size = min(length, max_length)
    train_tokens(size, train_fraction, shortest)
    if size > max_length:
        raise OptionError(f"The block size is {size}; this simulator was compiled for at most {max_length} tokens.")
    if size > length and not partial:
        raise InputError(f"The text has {length} tokens, which is less than one block of {size}; cut shorter ones.")
    if max_blocks is not None and max_blocks < 1:
        raise OptionError(f"The number of blocks is {max_blocks}; it must be at least 1.")
    pieces = [*text.split(size - len(begin))]
    rest = len(pieces[-1]) % (size - len(begin))
    if rest and not (partial and _is_enough(len(begin) + rest, train_fraction, shortest)):
        pieces.pop()
    else:
        rest = 0
    if max_blocks is not None and len(pieces) >= max_blocks:
        pieces, rest = pieces[:max_blocks], 0
    if not pieces:
        raise InputError(f"The text has {length} tokens, too few to be trained on and scored; pass a longer one.")
    blocks = [_block(torch.cat([begin, piece]), len(begin), train_fraction) for piece in pieces]
    return Blocks(tuple(blocks), size, len(begin), rest)


def _without(ids: Tensor, begin: Tensor) -> Tensor:
    """Return a text without what it begins with."""
    while len(begin) and torch.equal(ids[: len(begin)], begin):
        ids = ids[len(begin) :]
    return ids


def _block(ids: Tensor, opening: int, fraction: float) -> Block:
    trained = math.floor(fraction * len(ids))
    return Block(ids, trained, max(trained, opening))


def _is_enough(size: int, fraction: float, shortest: int) -> bool:
    return size >= shortest and math.floor(fraction * size) >= 2


def train_tokens(size: int, fraction: float, shortest: int = SHORTEST) -> int:
    """Return how many of a block's tokens are trained on; raise `OptionError` unless some are, and some are left."""
    if size < shortest:
        raise OptionError(f"The block size is {size}; it must be at least {shortest} tokens.")
    if not 0 < fraction < 1:
        raise OptionError(f"The train fraction is {fraction}; it must lie between 0 and 1, both excluded.")
    count = math.floor(fraction * size)
    if count < 2:
        raise OptionError(
            f"The train fraction {fraction} leaves {count} of {size} tokens to train on; two are needed. Raise it, or "
            "choose longer blocks."
        )
    return count
