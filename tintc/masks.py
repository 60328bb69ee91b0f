"""Masks for few-shot prompts: demonstrations, one after the other, then a query.

`single` trains on each demonstration by itself, as if they were a batch; `multi` on all of them as one text (the
paper's "Single" and "Multi"). Both return what a simulator takes besides the token ids, by keyword::

    sim(ids, **tintc.masks.single([[12, 9, 14]], [11]))

`few_shot` starts from texts and labels, and counts the tokens itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import BatchEncoding

from tintc.errors import InputError, OptionError
from tintc.ir.special import opening_of

FORMATS = ("single", "multi")
LOSSES = ("label", "full")
QUERY, PAD = -1, -2
"""Where a token belongs, if to no demonstration."""


def single(demonstrations: Sequence[Sequence[int]], queries: Sequence[int]) -> dict[str, Tensor]:
    """Let every demonstration, and the query, see only itself; positions restart in each of them.

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
    """Give plain causal attention and positions: each demonstration sees those before it, and the query all of them.

    Arguments and result as in `single`; the loss counts every demonstration's tokens.
    """
    owner, _ = _segments(demonstrations, queries)
    is_pad = owner == PAD
    return _masks(owner, is_pad[:, :, None] == is_pad[:, None, :])


def _is_pair(demonstration: Any) -> bool:
    """Return True for a text and its label."""
    try:
        text, label = demonstration
    except (TypeError, ValueError):
        return False
    return isinstance(text, str) and isinstance(label, str) and not isinstance(demonstration, str)


def few_shot(
    tokenizer: Any,
    demonstrations: Sequence[tuple[str, str]],
    query: str,
    format: Literal["single", "multi"] = "single",
    loss: Literal["label", "full"] = "label",
    separator: str = "\n\n",
) -> BatchEncoding:
    """Return what a simulator takes for a few-shot prompt: train on the demonstrations, predict what follows the query.

    demonstrations: pairs of a text and its label, which follows the text as it is written (so one of them has the space
    between them); query: a text whose label is wanted. format ``single``: each begins as the tokenizer begins a text,
    and sees only itself; ``multi``: they are one text, with `separator` between them. loss ``label``: only the labels'
    tokens are targets; ``full``: all tokens of the demonstrations. A token that is part text and part label is the
    label's.

    Returns ``input_ids``, ``train_mask`` and ``loss_mask [1, T]``, for ``single`` also ``attention_mask [1, T, T]`` and
    ``position_ids [1, T]``: ``sim(**tintc.masks.few_shot(...))``. Raises `InputError` for texts without tokens and
    for what is no pair of strings, and
    `OptionError` for another format or loss.
    """
    for name, value, known in (("format", format, FORMATS), ("loss", loss, LOSSES)):
        if value not in known:
            raise OptionError(f"The {name} is {value!r}; choose one of {', '.join(known)}.")
    if not demonstrations:
        raise InputError("There are no demonstrations; pass at least one pair of a text and its label.")
    for demonstration in demonstrations:
        if not _is_pair(demonstration):
            raise InputError(f"A demonstration is {demonstration!r}; pass a pair of strings, a text and its label.")
    if not callable(tokenizer):
        raise InputError("There is no tokenizer; pass sim.tokenizer, or the one of the model it was compiled from.")
    parts = [[*demonstration] for demonstration in demonstrations] + [[query]]
    if format == "multi":
        joined = [part for text, label in demonstrations for part in (text, label, separator)]
        pieces = _pieces(tokenizer, [*joined, query])
        segments = [pieces[at : at + 3] for at in range(0, len(pieces), 3)]
        opened = segments[:1]
    else:
        segments = [_pieces(tokenizer, texts) for texts in parts]
        opened = segments
    _check_pieces(parts, segments)
    opening = opening_of(tokenizer)
    for segment in opened:
        segment[0] = [*opening, *segment[0]]
    lengths = [sum(map(len, segment)) for segment in segments]
    ids = [token for segment in segments for piece in segment for token in piece]
    targets = _targets(segments, [len(opening) * (index < len(opened)) for index in range(len(segments))], loss)
    if format == "multi":
        plain = multi([lengths[:-1]], [lengths[-1]])
        masks = {"train_mask": plain["train_mask"], "loss_mask": plain["loss_mask"]}
    else:
        masks = single([lengths[:-1]], [lengths[-1]])
    masks["loss_mask"] &= targets
    return BatchEncoding({"input_ids": torch.tensor([ids])} | masks)


def _targets(segments: Sequence[Sequence[Sequence[int]]], openings: Sequence[int], loss: str) -> Tensor:
    """Return ``[1, T]``, True for tokens that the loss may count. openings: tokens of each segment's opening, none of
    which does."""
    targets: list[bool] = []
    for pieces, begins in zip(segments, openings, strict=True):
        for place, piece in enumerate(pieces):
            counts = loss == "full" or place == 1
            targets += [counts and (place > 0 or at >= begins) for at in range(len(piece))]
    return torch.tensor([targets])


def _pieces(tokenizer: Any, parts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of a text that is made of parts, by part.

    The text is tokenised whole. A part ends with the last token that is also there when the text ends with the part:
    a token across the border belongs to the next part.
    """

    def tokens(text: str) -> list[int]:
        return [*tokenizer(text, add_special_tokens=False)["input_ids"]]

    whole = tokens("".join(parts))
    ends = [0]
    for count in range(1, len(parts)):
        ends.append(max(ends[-1], _common(tokens("".join(parts[:count])), whole)))
    return [whole[start:end] for start, end in pairwise([*ends, len(whole)])]


def _common(some: Sequence[int], others: Sequence[int]) -> int:
    """Return how many first tokens are the same."""
    pairs = zip(some, others, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(some), len(others)))


def _check_pieces(parts: Sequence[Sequence[str]], segments: Sequence[Sequence[Sequence[int]]]) -> None:
    """Raise `InputError` unless there are texts, and tokens for every label and the query."""
    for number, ((text, *_), pieces) in enumerate(zip(parts, segments, strict=True), 1):
        is_query = number == len(segments)
        what = f"Demonstration {number}"
        if is_query:
            what = "The query"
        if not text or (is_query and not pieces[0]):
            raise InputError(f"{what} has no tokens; pass a text that is not empty.")
        if not is_query and not pieces[1]:
            raise InputError(f"{what} has a label without tokens; pass one that is not empty.")


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
    """Return the demonstration of each token, `QUERY` or `PAD`, and where its segment starts, ``[B, T]``."""
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
            owner[row, at : at + length] = name
            starts[row, at : at + length] = at
            at += length
    return owner, starts
