"""What `--model_args` of the harness may say: text or numbers, as numbers in range."""

from __future__ import annotations

import math

from tintc.errors import OptionError


def fraction(given: float | str) -> float:
    """Return a train fraction from 0 to less than 1, which may be given as text; raise `OptionError` otherwise."""
    try:
        fraction = float(given)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction < 1:
        raise OptionError(f"The train fraction is {given}; it must be a number from 0 to less than 1.")
    return fraction


def rate(given: float | str) -> float:
    """Return a finite learning rate of zero or more, which may be given as text; raise `OptionError` otherwise."""
    try:
        rate = float(given)
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and rate >= 0):
        raise OptionError(f"The inner learning rate is {given}; it must be a finite number, zero or more.")
    return rate


def length(given: int | str) -> int:
    """Return a maximal length of at least 2 tokens, which may be given as text; raise `OptionError` otherwise."""
    if not str(given).isdecimal() or int(given) < 2:
        raise OptionError(f"The max length is {given}; it must be a number of tokens, at least 2.")
    return int(given)


def batch(size: int | str, largest: int | None) -> int:
    """Return a batch size, for ``auto`` the largest one or 1; raise `OptionError` for what is none."""
    if str(size).startswith("auto"):
        return largest or 1
    if not str(size).isdigit() or int(size) < 1:
        raise OptionError(f"The batch size is {size}; it must be a number of texts, at least 1.")
    return int(size)
