"""Runs a plan: each op's fused form, on token values cut to the part of the text the plan keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tintc.ir.core import Value
from tintc.ir.functions import causal_mask
from tintc.ir.inputs import Inputs
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.fused_base import FusedWeights, Pending
from tintc.runtime.fused.plan import Plan

if TYPE_CHECKING:
    from tintc.runtime.model import TintForCausalLM


class FusedExecutor:
    """One run of a plan on one batch (the runtime's `FusedRun`)."""

    def __init__(self, model: TintForCausalLM, inputs: Inputs, plan: Plan, inner_lr: Tensor | None):
        self.model, self.inputs, self.plan, self.inner_lr = model, inputs, plan, inner_lr
        self.plain = bool(inputs.allowed.all())
        self._scores: dict[tuple[Value, Value, int], Tensor] = {}
        self._turns: dict[str, tuple[Tensor, Tensor]] = {}
        self._masks: dict[int, Tensor] = {}

    def run(self, outputs: tuple[str, ...]) -> dict[str, Tensor]:
        values: dict[Value, Any] = {}
        for op in self.plan.ops:
            read = self.plan.lengths[op] if op.phase == "forward" else self.plan.sizes.train
            operands = [_cut(values[value], read) for value in self.plan.operands(op)]
            result = op.fused(self, *operands)
            values.update(zip(op.results, result if len(op.results) > 1 else (result,), strict=True))
            for value in self.plan.last[op]:
                del values[value]
                self._scores = {key: scores for key, scores in self._scores.items() if key[0] is not value}
        program = self.model.program
        return {label: values[self.plan.resolve(program.outputs[label])] for label in outputs}

    def table(self, name: str) -> Tensor:
        return self.model.table(name)

    def stored(self, name: str) -> FusedWeights:
        module = self.model.prefix(name)
        parts = module.holds.parts
        bias = module.bias if any(part.startswith("bias") for part in parts) else None
        if module.holds.kind == "norm":
            return FusedWeights(module.gain if "gain" in parts else None, bias)
        return FusedWeights(module.weight.flatten(0, 1)[: module.holds.dims[0]], bias)

    def rate(self, name: str, step: int) -> Tensor:
        return self.model.rate(name)[step] if self.inner_lr is None else self.inner_lr

    def length(self, op: SimOp) -> int:
        return self.plan.lengths[op]

    def lazy(self, op: SimOp) -> bool:
        return op in self.plan.lazy

    def frees(self, op: SimOp, value: Value) -> bool:
        return self.plan.resolve(value) in self.plan.last[op]

    def scores(self, x: Tensor, source: Value, pending: Pending) -> Tensor:
        key = (self.plan.resolve(source), pending.source, x.shape[1])
        if key not in self._scores:
            self._scores[key] = x @ pending.x.transpose(1, 2)
        return self._scores[key]

    def turn(self, heads: Tensor, inv_freq: str, style: str) -> Tensor:
        """As `tintc.ir.functions.rotate`, with cosines and sines kept for the run."""
        if not inv_freq:
            return heads
        if inv_freq not in self._turns:
            frequencies = self.model.rotary_table(inv_freq)
            angle = self.inputs.position_ids[:, None, :, None].to(frequencies.dtype) * frequencies
            self._turns[inv_freq] = angle.cos(), angle.sin()
        cos, sin = (table[:, :, : heads.shape[2]].to(heads.dtype) for table in self._turns[inv_freq])
        n = cos.shape[-1]
        turned, rest = heads[..., : 2 * n], heads[..., 2 * n :]
        if style == "half":
            a, b = turned[..., :n], turned[..., n:]
            parts = (a * cos - b * sin, b * cos + a * sin)
            return torch.cat((*parts, rest), -1)
        a, b = turned[..., 0::2], turned[..., 1::2]
        pairs = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        return torch.cat((pairs, rest), -1)

    def allowed(self, length: int) -> Tensor | None:
        if self.plain:
            return None
        if length not in self._masks:
            seen = self.inputs.allowed[:, :length, :length] & causal_mask(length, self.inputs.allowed.device)
            self._masks[length] = seen[:, None]
        return self._masks[length]

    def train(self, length: int) -> Tensor | None:
        mask = self.inputs.train[:, :length]
        return None if bool(mask.all()) else mask[..., None].to(self.model.dtype)


def _cut(value: Any, length: int) -> Any:
    """The first `length` positions of a token value; weights are what they are."""
    if isinstance(value, Tensor) and value.shape[1] > length:
        return value[:, :length]
    return value
