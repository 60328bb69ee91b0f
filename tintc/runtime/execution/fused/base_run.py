"""The part of a fused run that all kinds of runs share: stored tensors, rotations, masks and scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor

from tintc.ir.core import Value
from tintc.ir.functions import alibi
from tintc.ir.inputs import Inputs
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.interface.chosen_experts import Routing
from tintc.ir.simulator.interface.fused_base import Pending
from tintc.runtime.execution.fused.placed import Copies, device_of, layer_devices
from tintc.runtime.execution.fused.rotary_cache import RotaryCache
from tintc.runtime.execution.simulator import Simulator


class FusedRunBase:
    """The part of the runtime's `FusedRun` that does not depend on what is run; one object serves one run.

    inputs: the tokens the run computes; positions ``[B, m]``: of all that attention sees, these included.
    """

    def __init__(self, model: Simulator, inputs: Inputs, positions: Tensor):
        self.model = model
        self.recorded = torch.is_grad_enabled()
        self._devices = layer_devices(model)
        self._elsewhere: dict[torch.device, Self] = {}
        self._copies = Copies()
        self._begin(inputs, positions)

    def _begin(self, inputs: Inputs, positions: Tensor) -> None:
        """Set what ops read of the text, and nothing that is computed once for several of them."""
        self.inputs = inputs
        self.positions = positions
        self._brought: dict[str, Tensor] = {}
        self._rotations = RotaryCache(self.score_vector, inputs.position_ids)
        self._masks: dict[Hashable, Tensor] = {}
        self._scores: dict[Value, dict[Hashable, Tensor]] = {}
        self._routings: dict[tuple[Value, tuple[int, ...]], Routing] = {}

    def placed(self, op: SimOp, values: Sequence[Value], operands: list[Any]) -> tuple[Self, list[Any]]:
        """Return the run that an op belongs to, and what it reads, both on the device of its layer.

        values, operands: what the operands are called in the program, and what they hold.
        """
        if not self.model.placed:
            return self, operands
        device = device_of(op, operands, self._devices, self.model.device)
        here = [self._copies.on(device, value, x) for value, x in zip(values, operands, strict=True)]
        return self._on(device), here

    def let_go(self, value: Value) -> None:
        """Forget what was computed of a value, or copied, for ops that read it."""
        self._scores.pop(value, None)
        if self.model.placed:
            self._copies.forget(value)
            for other in self._elsewhere.values():
                other._scores.pop(value, None)

    def _on(self, device: torch.device) -> Self:
        """Return this run as ops on a device see it."""
        if device == self.inputs.input_ids.device:
            return self
        if device not in self._elsewhere:
            other = copy(self)
            other._begin(self.inputs.to(device), self.positions.to(device))
            self._elsewhere[device] = other
        return self._elsewhere[device]

    def _bring(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor of the simulator on the device of this run's text."""
        if not self.model.placed or tensor.device == self.inputs.input_ids.device:
            return tensor
        if name not in self._brought:
            self._brought[name] = tensor.to(self.inputs.input_ids.device)
        return self._brought[name]

    def table(self, name: str) -> Tensor:
        return self._bring(f"tables.{name}", self.model.table(name))

    def stored(self, name: str) -> Mapping[str, Tensor]:
        return stored_parts(self.model, name)

    def scores(self, x: Tensor, source: Value, pending: Pending) -> Tensor:
        known = self._scores.setdefault(source, {})
        # Rows of one value start at different places of one tensor, which lives as long as the entry does.
        place = (x.untyped_storage()._cdata, x.storage_offset())
        key = (pending.source, place, x.shape[1], pending.x.shape[1])
        return _once(known, key, lambda: x @ pending.x.transpose(1, 2))

    def routing(self, r: Tensor, source: Value, chosen: int) -> Routing:
        key = (source, tuple(r.shape))
        if key not in self._routings:
            self._routings[key] = Routing.of(r, chosen)
        return self._routings[key]

    def apply_rotary(self, heads: Tensor, inv_freq: str, style: str, start: int = 0, back: bool = False) -> Tensor:
        return self._rotations.apply_rotary(heads, inv_freq, style, start, back)

    def score_vector(self, name: str) -> Tensor:
        return self._bring(f"score_vectors.{name}", self.model.score_vector(name))

    def alibi(self, slopes: tuple[float, ...], scores: Tensor, rows: slice) -> Tensor:
        return alibi(slopes, self.positions[:, rows], self.positions[:, : scores.shape[-1]], scores)

    def later(self, count: int) -> Tensor:
        def build() -> Tensor:
            full = torch.full((count, count), -math.inf, dtype=self.model.dtype, device=self.positions.device)
            return full.triu_(1)

        return _once(self._masks, ("later", count), build)


def stored_parts(model: Simulator, name: str) -> Mapping[str, Tensor]:
    """Return the stored tensors of a layer by part, as the parameters they are, or as they are parametrised."""
    prefix = model.prefix(name)
    return {part: getattr(prefix, part) for part in prefix.parts}


def _once(known: dict[Hashable, Tensor], key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    if key not in known:
        known[key] = make()
    return known[key]
