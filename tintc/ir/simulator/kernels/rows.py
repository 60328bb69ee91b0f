"""Rows for kernels that take one vector at a time: where they lie, how large a block holds one, how far to step."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

LARGEST = 1 << 15
"""Numbers of the widest vector that one program holds."""
FUNCTIONS = ("relu", "relu2", "gelu", "gelu_tanh", "quick_gelu", "silu", "identity")
"""The activations that have kernels."""


def as_rows(x: Tensor) -> Tensor:
    """Return ``[B, N, D]`` of ``[B, ..., D]``: a view where the vectors lie evenly, as those of a cut text do."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    if x.dim() == 2:
        x = x[None]
    return x.flatten(1, -2) if x.dim() > 3 else x


def block_of(width: int) -> tuple[int, int]:
    """Return (numbers of the block that holds a vector, warps that share it)."""
    block = max(16, 1 << (width - 1).bit_length())
    return block, min(16, max(1, block // 512))


class Difference(NamedTuple):
    """How far a finite difference steps: `step`, divided by every vector's root mean square (at least `tiny`) if it is
    `per_token`; central: to both sides."""

    step: float
    per_token: bool
    central: bool
    tiny: float

    def constants(self) -> dict[str, float | bool]:
        """Return them as a kernel's constants."""
        return {"STEP": self.step, "PER_TOKEN": self.per_token, "CENTRAL": self.central, "TINY": self.tiny}
