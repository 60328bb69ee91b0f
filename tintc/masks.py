"""Masks for few-shot prompts: demonstrations, one after the other, then a query.

`single` trains on each demonstration by itself, as if they were a batch; `multi` on all of them as one text (the
paper's "Single" and "Multi"). Both return what a simulator takes besides the token ids, by keyword::

    sim(ids, **tintc.masks.single([[12, 9, 14]], [11]))
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tintc.errors import InputError

QUERY, PAD = -1, -2
"""Where a token belongs, if to no demonstration."""


def single(demonstrations: Sequence[Sequence[int]], queries: Sequence[int]) -> dict[str, Tensor]:
    """Every demonstration, and the query, sees only itself; positions restart in each of them.

    demonstrations: the lengths, in tokens, of the demonstrations of each text of the batch; queries: the length of each
    text's query. Shorter texts are padded on the right. The loss leaves out the first token of each demonstration,
    which nothing of its own precedes, so that the summed gradient is that of the demonstrations run as a batch.

    Returns ``attention_mask [B, T, T]`` (who may see whom, causal), ``position_ids``, ``train_mask`` and ``loss_mask
    [B, T]``. Raises `InputError` for lengths that are not those of texts.
    """
    owner, starts = _segments(demonstrations, queries)
    places = torch.arange(owner.shape[1])
    masks = _masks(owner, owner[:, :, None] == owner[:, None, :])
    first = starts == places
    return masks | {"position_ids": places - starts, "loss_mask": masks["loss_mask"] & ~first}


def multi(demonstrations: Sequence[Sequence[int]], queries: Sequence[int]) -> dict[str, Tensor]:
    """Plain causal attention and positions: each demonstration sees those before it, and the query all of them.

    Arguments and result as in `single`; the loss counts every demonstration's tokens.
    """
    owner, _ = _segments(demonstrations, queries)
    is_pad = owner == PAD
    return _masks(owner, is_pad[:, :, None] == is_pad[:, None, :])


def _masks(owner: Tensor, sees: Tensor) -> dict[str, Tensor]:
    batch, length = owner.shape
    train = owner >= 0
    return {
        "attention_mask": sees & torch.ones(length, length, dtype=torch.bool).tril(),
        "position_ids": torch.arange(length).repeat(batch, 1),
        "train_mask": train,
        "loss_mask": train.clone(),
    }


def _segments(demonstrations: Sequence[Sequence[int]], queries: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``[B, T]``: the demonstration that each token belongs to, `QUERY` or `PAD`; and where that segment starts."""
    if len(demonstrations) != len(queries) or not queries:
        raise InputError(
            f"There are demonstrations for {len(demonstrations)} texts and {len(queries)} queries; pass the lengths of "
            "both for every text of the batch."
        )
    if any(length < 1 for text in demonstrations for length in text) or any(length < 0 for length in queries):
        raise InputError("A demonstration must be at least one token long, and a query at least none.")
    totals = [sum(text) + query for text, query in zip(demonstrations, queries, strict=True)]
    if min(totals) < 1:
        raise InputError("A text is empty; pass at least one demonstration or a query.")
    owner, starts = torch.full((2, len(totals), max(totals)), PAD).unbind()
    for row, (text, query) in enumerate(zip(demonstrations, queries, strict=True)):
        at = 0
        for name, length in (*enumerate(text), (QUERY, query), (PAD, max(totals) - totals[row])):
            owner[row, at : at + length], starts[row, at : at + length] = name, at
            at += length
    return owner, starts
