"""Runs a plan: each op's fused form, on token values cut to the part of the text the plan keeps."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.analysis.capture_points import sized
from tintc.ir.core import Value
from tintc.ir.functions import causal_mask
from tintc.ir.inputs import Inputs
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.interface.fused_base import Pending
from tintc.runtime.execution.fused.base_run import Reading
from tintc.runtime.execution.fused.packed_linear import joined
from tintc.runtime.execution.fused.plan import Plan
from tintc.runtime.execution.rates import Rates

if TYPE_CHECKING:
    from tintc.runtime.model.causal_lm import TintForCausalLM


class FusedExecutor(Reading):
    """One run of a plan on one batch (the runtime's `FusedRun`)."""

    def __init__(self, model: TintForCausalLM, inputs: Inputs, plan: Plan, rates: Rates | None):
        super().__init__(model, inputs, inputs.position_ids)
        self.plan, self.given = plan, rates
        self._parts: dict[SimOp, Tensor] = {}
        self._trains: dict[tuple[int, int], Tensor | None] = {}
        self._rates: dict[str, list[float]] = {}
        self._given: dict[tuple[str, int], Tensor | float] = {}

    def run(self) -> dict[str, Any]:
        """The plan's outputs by name; weights as `FusedWeights`."""
        values: dict[Value, Any] = {}
        seen: dict[str, Tensor] = {}
        shown, edits = self.plan.shown, self.model.edits
        for op, operands, read, last in self.plan.steps:
            visible: dict[str, Tensor] = {}
            if op in shown:
                given = [_cut(values[value], read) for value in operands]
                visible = {name: op.show_fused(name, self, *given) for name in {name for _, name in shown[op]}}
                seen |= {label: visible[name] for label, name in shown[op]}
                del given
            form = partial(op.fused_showing, self, visible) if visible and self.recorded else partial(op.fused, self)
            result = form(*(_cut(values[value], read) for value in operands))
            if edits and op.results[0] in edits:
                result = edits[op.results[0]](result)
            if len(op.results) == 1:
                values[op.results[0]] = result
            else:
                values.update(zip(op.results, result, strict=True))
            for value in last:
                del values[value]
                self._scores.pop(value, None)
        return {label: values[value] for label, value in self.plan.outputs.items()} | self._unseen() | seen

    def _unseen(self) -> dict[str, Tensor]:
        """Zeros, for what is shown by ops that the plan has left out because there is nothing to train on."""
        made, device = set(self.plan.ops), self.inputs.input_ids.device
        left = [(op, *one) for op, shown in self.plan.shown.items() if op not in made for one in shown]
        return {
            label: torch.zeros(sized(op.shows()[name], *self.inputs.shape), dtype=self.model.dtype, device=device)
            for op, label, name in left
        }

    def rate(self, name: str, step: int) -> Tensor | float:
        given = None if self.given is None else self.given.of(name, step)
        if given is not None:
            if (name, step) not in self._given:
                number = None if self.recorded else _one_number(given)
                self._given[name, step] = given if number is None else number
            return self._given[name, step]
        if self.recorded:
            return self.model.rate(name)[step]
        if not self._rates:
            self._rates = self._read_rates()
        return self._rates[name][step]

    def _read_rates(self) -> dict[str, list[float]]:
        """All stored rates as numbers, in one transfer."""
        names = [name for op in self.plan.ops for name in op.rates()]
        stacked = torch.stack([self.model.rate(name).detach() for name in names])
        return dict(zip(names, stacked.tolist(), strict=True))

    def here(self, op: SimOp) -> slice:
        return slice(0, self.plan.lengths[op])

    def lazy(self, op: SimOp) -> bool:
        return op in self.plan.lazy

    def frees(self, op: SimOp, value: Value) -> bool:
        return not self.recorded and self.plan.frees(op, value)

    def scores(self, x: Tensor, source: Value, pending: Pending) -> Tensor:
        return super().scores(x, self.plan.resolve(source), pending)

    def shared(self, op: SimOp, x: Tensor) -> Tensor | None:
        if self.recorded or op not in self.plan.joined:
            return None
        if op not in self._parts:
            ops, layers = self.plan.joined[op]
            together = joined(self.model, layers)
            if together is None:
                return None
            parts = F.linear(x, *together).split([one.result.type.width for one in ops], -1)
            self._parts.update(zip(ops, parts, strict=True))
        return self._parts.pop(op)

    def allowed(self, queries: int, keys: int, window: int = 0) -> Tensor | None:
        window = 0 if window >= keys else window
        if self.inputs.plain and not window:
            return None
        if (keys, window) not in self._masks:
            seen = self.inputs.allowed[:, :keys, :keys] & causal_mask(keys, self.inputs.allowed.device, window)
            self._masks[keys, window] = seen[:, None]
        return self._masks[keys, window][:, :, keys - queries :]

    def train(self, length: int, step: int) -> Tensor | None:
        key = length, step if self.inputs.train.dim() == 3 else 0
        if key not in self._trains:
            mask = self.inputs.trained(step)[:, :length]
            self._trains[key] = None if bool(mask.all()) else mask[..., None].to(self.model.dtype)
        return self._trains[key]


def _one_number(rates: Tensor) -> float | None:
    """What all entries are, if they are one number."""
    numbers = set(rates.tolist())
    return numbers.pop() if len(numbers) == 1 else None


def _cut(value: Any, length: int) -> Any:
    """The first `length` positions of a token value; weights are what they are."""
    if isinstance(value, Tensor) and value.shape[1] > length:
        return value[:, :length]
    return value
