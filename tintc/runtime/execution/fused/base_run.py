"""What the fused forms of ops read in every kind of run: stored tensors, and what positions and masks say."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tintc.ir.core import Value
from tintc.ir.functions import alibi
from tintc.ir.inputs import Inputs
from tintc.ir.simulator.interface.fused_base import Pending
from tintc.runtime.execution.fused.rotary_cache import Turns

if TYPE_CHECKING:
    from tintc.runtime.model.causal_lm import TintForCausalLM


class Reading:
    """The part of the runtime's `FusedRun` that does not depend on what is run; one object serves one run.

    inputs: the tokens the run computes; positions ``[B, m]``: of all that attention sees, these included.
    """

    def __init__(self, model: TintForCausalLM, inputs: Inputs, positions: Tensor):
        self.model, self.inputs, self.positions = model, inputs, positions
        self.recorded = torch.is_grad_enabled()
        self._turns = Turns(model, inputs.position_ids)
        self._masks: dict[Hashable, Tensor] = {}
        self._scores: dict[Value, dict[Hashable, Tensor]] = {}

    def table(self, name: str) -> Tensor:
        return self.model.table(name)

    def stored(self, name: str) -> Mapping[str, Tensor]:
        return stored_parts(self.model, name)

    def scores(self, x: Tensor, source: Value, pending: Pending) -> Tensor:
        known = self._scores.setdefault(source, {})
        key = (pending.source, x.data_ptr(), x.shape[1], pending.x.shape[1])
        return _once(known, key, lambda: x @ pending.x.transpose(1, 2))

    def turn(self, heads: Tensor, inv_freq: str, style: str, start: int = 0) -> Tensor:
        return self._turns.turn(heads, inv_freq, style, start)

    def rotary(self, name: str) -> Tensor:
        return self.model.rotary_table(name)

    def alibi(self, slopes: tuple[float, ...], scores: Tensor, rows: slice) -> Tensor:
        return alibi(slopes, self.positions[:, rows], self.positions[:, : scores.shape[-1]], scores)

    def later(self, count: int) -> Tensor:
        def made() -> Tensor:
            full = torch.full((count, count), -math.inf, dtype=self.model.dtype, device=self.positions.device)
            return full.triu_(1)

        return _once(self._masks, ("later", count), made)


def stored_parts(model: TintForCausalLM, name: str) -> Mapping[str, Tensor]:
    """The stored tensors of a layer by part, as the parameters they are, or as they are parametrised."""
    prefix = model.prefix(name)
    return {part: getattr(prefix, part) for part in prefix.parts}


def _once(known: dict[Hashable, Tensor], key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    if key not in known:
        known[key] = make()
    return known[key]
