"""Lists of columns as runs, the way `aux.select` writes them."""

from __future__ import annotations

from collections.abc import Sequence


def runs_of(columns: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """``[4, 5, 6, 0, 1]`` as ``((4, 7), (0, 2))``."""
    runs: list[tuple[int, int]] = []
    for column in columns:
        if runs and runs[-1][1] == column:
            runs[-1] = (runs[-1][0], column + 1)
        else:
            runs.append((column, column + 1))
    return tuple(runs)
