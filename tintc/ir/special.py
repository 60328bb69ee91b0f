"""The special tokens that a tokenizer puts around a text."""

from __future__ import annotations

from typing import Any

PROBE = "a"
"""A text whose tokens show what the tokenizer puts around them."""


def opening_of(tokenizer: Any | None) -> tuple[int, ...]:
    """Return the special tokens that a tokenizer puts in front of a text: the BOS of Llama and Gemma,
    nothing for GPT-2."""
    if tokenizer is None:
        return ()
    whole, bare = (tokenizer(PROBE, add_special_tokens=special)["input_ids"] for special in (True, False))
    starts = range(len(whole) - len(bare) + 1)
    return tuple(whole[: next((at for at in starts if whole[at : at + len(bare)] == bare), 0)])
