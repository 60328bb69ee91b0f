"""A text for calibration and verification, where the user gives none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tintc.errors import ModelError

PROBE = """
The river had been rising since Tuesday, and by Friday evening the lower street was under water. Anna carried the last
of the books upstairs, two boxes at a time, while her brother tied the boat to the railing of the porch. Nobody in the
town could remember a spring like this one. The mill stood silent, its wheel half drowned; the baker sold bread from a
window on the first floor, and the children thought it was the best week of their lives. On Saturday the rain stopped.
The water stayed where it was for another day, brown and quite still, and then went down in a single night, as if
somebody had pulled out a plug. What it left behind was mud, a great many fish in the school's garden, and a piano that
belonged to none of them.
"""
"""The text."""


def numbers(vocab_size: int, length: int, without: Sequence[int] = ()) -> Tensor:
    """Return token ids ``[length]`` that are the same every time, for models without tokenizer.

    without: ids that are not among them; the first other id stands in their place.
    """
    ids = torch.randint(0, vocab_size, (length,), generator=torch.Generator().manual_seed(0))
    allowed = next(token for token in range(vocab_size) if token not in without)
    return ids.masked_fill(torch.isin(ids, torch.tensor(without, dtype=torch.long)), allowed)


def sample(
    tokenizer: Any | None, vocab_size: int, length: int, text: str | None = None, without: Sequence[int] = ()
) -> Tensor:
    """Return at most `length` token ids of the text, or of the built-in one; without tokenizer and text, `numbers`."""
    if tokenizer is None and text is None:
        return numbers(vocab_size, length, without)
    if tokenizer is None:
        raise ModelError("The model has no tokenizer, so a calibration text is of no use; pass token ids from Python.")
    if text is None:
        text = PROBE
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[:length], dtype=torch.long)
