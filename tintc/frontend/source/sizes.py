"""How many token ids a model has, and how long the texts may be that it is compiled for."""

from __future__ import annotations

from typing import Any

from torch import nn

from tintc.errors import OptionError
from tintc.frontend.graph.calling import longest_sequence, text_config
from tintc.frontend.graph.trace_model import LONGEST
from tintc.frontend.source.kinds import is_registered
from tintc.frontend.source.modules import count_ids, find_length


def sizes_of(model: nn.Module, name: str, vocab_size: int | None, max_length: int | None) -> tuple[int, int]:
    """Return (number of token ids, longest text), of which None leaves either to the model.

    A module that is none of transformers' is run on token ids to learn them. Raises `OptionError` for sizes that it
    does not have.
    """
    if is_registered(model):
        config = text_config(model)
        longest = _length(name, longest_sequence(config), max_length)
        return _vocabulary(name, config, vocab_size), longest
    count = count_ids(model, name, vocab_size)
    return count, find_length(model, name, max_length)


def _length(name: str, longest: int | None, wanted: int | None) -> int:
    """Return the longest text that the result must serve; raise `OptionError` if the model cannot."""
    if wanted is None:
        return min(longest or LONGEST, LONGEST)
    if longest is None and wanted < 2:
        raise OptionError(f"The maximal length is {wanted}; it must be at least 2.")
    if longest is not None and not 2 <= wanted <= longest:
        raise OptionError(
            f"The maximal length is {wanted}; it must be between 2 and {longest}, the positions that {name} has."
        )
    return wanted


def _vocabulary(name: str, config: Any, wanted: int | None) -> int:
    """Return the number of token ids that a configuration says; raise `OptionError` if another is wanted."""
    if wanted not in (None, config.vocab_size):
        raise OptionError(f"The vocab_size is {wanted}, and {name} has {config.vocab_size} token ids; leave it out.")
    return config.vocab_size
