"""The base of ops that mix tokens by a state: which masks they take, and which tokens are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tintc.errors import InputError
from tintc.ir.inputs import Inputs
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.fused_base import FusedRun

ONLY_PADDING = (
    "This model has layers that carry a state from token to token, which see every earlier token; pass an "
    "attention_mask [batch, length] that marks padding alone."
)


@dataclass(eq=False, kw_only=True)
class MixerOp(SimOp):
    """An op whose result at a token depends on all earlier tokens that are no padding."""

    def check(self, inputs: Inputs, stored: Callable[[str], Tensor]) -> None:
        if not inputs.only_padding:
            raise InputError(ONLY_PADDING)

    def real(self, run: FusedRun, length: int) -> Tensor | None:
        """Return which of the first `length` tokens are no padding, ``[B, n]`` bool; None if all are none."""
        if run.inputs.plain:
            return None
        return run.inputs.real_tokens[:, :length]
