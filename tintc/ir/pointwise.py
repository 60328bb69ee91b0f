"""Functions of one number that what a mixer's matrix is made of goes through: time steps, decays, strengths."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.ir.core import Op

UNBOUNDED = 1e300
"""The bound, on either side, of what is not clamped."""
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "sigmoid": torch.sigmoid,
    "log_sigmoid": F.logsigmoid,
    "softplus": F.softplus,
    "exp": torch.exp,
}


@dataclass(eq=False, kw_only=True)
class PointwiseOptions(Op):
    """``gain * clamp(fn(x + shift), low, high)``; shift, gain: names of vectors as wide as x (empty: 0 and 1)."""

    fn: str
    shift: str = ""
    gain: str = ""
    low: float = -UNBOUNDED
    high: float = UNBOUNDED

    def verify(self) -> None:
        (x,) = self.operands
        self.expect(self.fn in FUNCTIONS, f"unknown function {self.fn!r}")
        self.expect(x.type == self.result.type, f"types differ: {x.type} -> {self.result.type}")
        self.expect(math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high, "clamps to nothing")

    def options(self) -> dict[str, Any]:
        """Return all options, by name."""
        inherited = {f.name for f in fields(Op)}
        return {f.name: getattr(self, f.name) for f in fields(PointwiseOptions) if f.name not in inherited}

    def clamps(self) -> bool:
        """Return whether anything is clamped."""
        return self.low > -UNBOUNDED or self.high < UNBOUNDED

    def vectors(self) -> dict[str, str]:
        """Return the names of the vectors, by option."""
        names = {key: getattr(self, key) for key in ("shift", "gain")}
        return {key: name for key, name in names.items() if name}


def apply_pointwise(options: PointwiseOptions, x: Tensor, vectors: Mapping[str, Tensor]) -> Tensor:
    """Return the function of ``x [.., W]``, in memory of its own; vectors: those of `PointwiseOptions.vectors`, by
    option."""
    y = x
    if "shift" in vectors:
        y = y + vectors["shift"].to(x.dtype)
    y = FUNCTIONS[options.fn](y)
    if options.clamps():
        finite = torch.finfo(x.dtype).max
        y = y.clamp(max(options.low, -finite), min(options.high, finite))
    if "gain" in vectors:
        y = y * vectors["gain"].to(x.dtype)
    if y is x:
        return x.clone()
    return y
