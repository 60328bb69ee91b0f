"""Intervals of what a resampled experiment would have found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

RESAMPLES = 2000
LEVEL = 0.95
SEED = 0


def interval(values: Sequence[Sequence[float]], statistic: Callable[[Tensor], Tensor]) -> list[float]:
    """Return the two ends of the percentile bootstrap interval at `LEVEL`.

    values ``[n, ...]``: one entry for each block or example, which are drawn with replacement; statistic: of sums
    ``[R, ...]`` of n drawn entries, ``[R]``. The draws are the same in every call with the same n.
    """
    table = torch.tensor(values, dtype=torch.float64)
    count = table.shape[0]
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.randint(count, (RESAMPLES, count), generator=generator)
    sums = torch.stack([table[rows].sum(0) for rows in drawn])
    results = statistic(sums).sort().values
    tail = (1 - LEVEL) / 2
    low = math.floor(tail * (RESAMPLES - 1))
    return [float(results[low]), float(results[RESAMPLES - 1 - low])]
