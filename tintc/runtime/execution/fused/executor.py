"""Running a plan: each op's fused form, on token values cut to the part of the text the plan keeps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.analysis.capture_points import sized
from tintc.ir.core import Value
from tintc.ir.functions import causal_mask
from tintc.ir.inputs import Inputs
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.interface.fused_base import FusedWeights, Pending
from tintc.runtime.execution.fused.base_run import FusedRunBase
from tintc.runtime.execution.fused.packed_linear import pack_weights, packed_linear
from tintc.runtime.execution.fused.plan import ExecutionPlan
from tintc.runtime.execution.fused.read_rates import read_rates
from tintc.runtime.execution.rates import Rates
from tintc.runtime.execution.simulator import Simulator


class FusedExecutor(FusedRunBase):
    """One run of a plan on one batch (the runtime's `FusedRun`).

    What has to be known of values (sizes, rates) is read before the run; `run` itself never waits for a GPU. starts:
    weights in place of stored ones, by the value of these; `Sizes.starts` of the plan names their layers.
    carrying: ops whose state after the text is wanted too, by name; the plan runs them on the whole text. on_device:
    whether rates are not read but left on the device, for a run that is recorded.
    """

    def __init__(
        self,
        model: Simulator,
        inputs: Inputs,
        plan: ExecutionPlan,
        rates: Rates | None,
        starts: Mapping[Value, FusedWeights],
        carrying: Mapping[str, SimOp] | None = None,
        on_device: bool = False,
    ):
        super().__init__(model, inputs, inputs.position_ids)
        self.carrying = {op: name for name, op in (carrying or {}).items()}
        self.plan = plan
        self.starts = starts
        self._rates = read_rates(model, plan.ops, rates, self.recorded or on_device)

    def _begin(self, inputs: Inputs, positions: Tensor) -> None:
        super()._begin(inputs, positions)
        self._parts: dict[SimOp, Tensor] = {}
        self._trains: dict[tuple[int, int], Tensor | None] = {}

    def run(self) -> dict[str, Any]:
        """Return the plan's outputs by name; weights as `FusedWeights`."""
        if not self.recorded:
            pack_weights(self.model)
        values: dict[Value, Any] = dict(self.starts)
        seen: dict[str, Tensor] = {}
        shown = self.plan.shown
        edits = self.model.edits
        for op, operands, read, last in self.plan.steps:
            if op.results[0] in self.starts:
                continue
            visible: dict[str, Tensor] = {}
            run, given = self.placed(op, operands, [_cut(values[value], read) for value in operands])
            if op in shown:
                visible = run._show(op, given)
                seen |= {label: visible[name] for label, name in shown[op]}
            form = partial(op.fused, run)
            if visible and self.recorded:
                form = partial(op.fused_showing, run, visible)
            if op in self.carrying:
                result, seen[self.carrying[op]] = op.carried(run, None, *given)
            else:
                result = form(*given)
            if edits and op.results[0] in edits:
                result = edits[op.results[0]](result)
            if len(op.results) == 1:
                values[op.results[0]] = result
            else:
                values.update(zip(op.results, result, strict=True))
            for value in last:
                del values[value]
                self.let_go(value)
        return {label: values[value] for label, value in self.plan.outputs.items()} | self._unseen() | seen

    def _show(self, op: SimOp, operands: list[Any]) -> dict[str, Tensor]:
        """Return what capture points show of an op besides its results, by name."""
        return op.show_fused({name for _, name in self.plan.shown[op]}, self, *operands)

    def _unseen(self) -> dict[str, Tensor]:
        """Return zeros for what is shown by ops that the plan has left out because there is nothing to train on."""
        planned = set(self.plan.ops)
        device = self.inputs.input_ids.device
        zeros: dict[str, Tensor] = {}
        for op, shown in self.plan.shown.items():
            if op not in planned:
                for label, name in shown:
                    shape = sized(op.extra_capture_points()[name], *self.inputs.shape)
                    zeros[label] = torch.zeros(shape, dtype=self.model.dtype, device=device)
        return zeros

    def rate(self, name: str, step: int) -> Tensor | float:
        rate = self._rates[name, step]
        if isinstance(rate, Tensor):
            return self._bring(f"rates.{name}.{step}", rate)
        return rate

    def here(self, op: SimOp) -> slice:
        return slice(0, self.plan.lengths[op])

    def lazy(self, op: SimOp) -> bool:
        return op in self.plan.lazy

    def frees(self, op: SimOp, value: Value) -> bool:
        return not self.recorded and self.plan.frees(op, value)

    def scores(self, x: Tensor, source: Value, pending: Pending) -> Tensor:
        return super().scores(x, self.plan.resolve(source), pending)

    def shared(self, op: SimOp, x: Tensor) -> Tensor | None:
        if self.recorded or op not in self.plan.packed:
            return None
        if op not in self._parts:
            ops, layers = self.plan.packed[op]
            together = packed_linear(self.model, layers)
            if together is None:
                return None
            parts = F.linear(x, *together).split([product.result.type.width for product in ops], -1)
            self._parts.update(zip(ops, parts, strict=True))
        return self._parts.pop(op)

    def allowed(self, queries: int, keys: int, window: int = 0) -> Tensor | None:
        if window >= keys:
            window = 0
        if self.inputs.plain and not window:
            return None
        if (keys, window) not in self._masks:
            seen = self.inputs.allowed[:, :keys, :keys] & causal_mask(keys, self.inputs.allowed.device, window)
            self._masks[keys, window] = seen[:, None]
        return self._masks[keys, window][:, :, keys - queries :]

    def train(self, length: int, step: int) -> Tensor | None:
        sizes = self.plan.sizes
        if sizes.filled and length <= sizes.train_end(step):
            return None
        if self.inputs.train.dim() == 2:  # the same in every step
            step = 0
        if (length, step) not in self._trains:
            self._trains[length, step] = self.inputs.train_mask(step)[:, :length, None].to(self.model.dtype)
        return self._trains[length, step]


def _cut(value: Any, length: int) -> Any:
    """Return the first `length` positions of a token value; weights and numbers as they are."""
    if isinstance(value, Tensor) and value.dim() > 1 and value.shape[1] > length:
        return value[:, :length]
    return value
