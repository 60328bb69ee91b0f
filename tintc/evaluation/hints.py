"""What to try where an update has made a text less likely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
ROUNDING = 1e-6
"""A relative difference between perplexities below which neither is the worse."""


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
