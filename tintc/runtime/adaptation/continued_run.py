"""A run of the part of a program that predicts (`Continuation`), on the last tokens of a text.

Its ops run by their own fused forms on new tokens alone; those that mix tokens also read what has been kept of the
tokens before: some of their operands (`SimOp.CACHED_OPERANDS`), or a state (`SimOp.CARRIES_STATE`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from tintc.ir.core import Value
from tintc.ir.inputs import Inputs
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.interface.fused_base import FusedWeights
from tintc.runtime.adaptation.continuation import AdaptiveSimulator, Continuation
from tintc.runtime.execution.fused.base_run import FusedRunBase


class ContinuedRun(FusedRunBase):
    """One run of the continuation on new tokens (the runtime's `FusedRun`).

    tokens: the new ones, ``[B, n]``; positions ``[B, m]`` of all tokens; seen: which tokens a new one may see besides
    the causal mask, ``[B, 1 or n, m]``, None: all; examples: how many have weights of their own, each for ``B /
    examples`` rows.
    """

    def __init__(
        self,
        sim: AdaptiveSimulator,
        tokens: Inputs,
        positions: Tensor,
        seen: Tensor | None = None,
        examples: int = 1,
        plan: Continuation | None = None,
    ):
        self.seen = seen
        super().__init__(sim, tokens, positions)
        self.plan = plan or sim.continuation
        self.examples = examples

    def _begin(self, inputs: Inputs, positions: Tensor) -> None:
        super()._begin(inputs, positions)
        if self.seen is not None:
            self.seen = self.seen.to(positions.device)

    def run(self, weights: Mapping[Value, FusedWeights], cache: Cache | None = None, keep: int = 0) -> Tensor:
        """Return logits ``[B, n, V]``, or of the last `keep` tokens if it is not 0.

        `cache` takes up what later tokens need.
        """
        return self.tail(self.hidden(weights, cache)[:, -keep:])

    def hidden(self, weights: Mapping[Value, Any], cache: Cache | None = None) -> Tensor:
        """Return what the last op reads, ``[B, n, D]``."""
        values: dict[Value, Any] = dict(weights)
        folds = self.inputs.shape[0] != self.examples
        for op, operands, result, kept, place, weighted, last in self.plan.steps[:-1]:
            run, inputs = self.placed(op, operands, [values[value] for value in operands])
            if kept:
                pair = op.remember(run, *[inputs[operands.index(value)] for value in kept])
                if cache is not None:
                    pair = cache.update(*pair, place)
                values[result] = op.continued(run, *pair, *inputs)
            elif op.CARRIES_STATE and cache is not None:
                layer: Any = cache.layers[place]
                values[result], layer.state = op.carried(run, layer.state, *inputs)
            elif weighted and folds:
                values[result] = run._folded(op, inputs)
            else:
                values[result] = op.fused(run, *inputs)
            for value in last:
                del values[value]
                self.let_go(value)
        (x,) = (values[value] for value in self.plan.tail.operands)
        return x

    def tail(self, x: Tensor) -> Tensor:
        """Return logits ``[B, n, V]`` from what the last op reads."""
        run, (x,) = self.placed(self.plan.tail, self.plan.tail.operands, [x])
        return self.plan.tail.fused(run, x)

    def _folded(self, op: SimOp, operands: list[Any]) -> Tensor:
        """Run an op that reads weights on the rows of each example side by side, as tokens of one text.

        Such an op mixes no tokens, and so every example needs its weights read only once.
        """
        rows = self.inputs.shape[0]
        folded = list(operands)
        for place, x in enumerate(operands):
            if isinstance(x, Tensor):
                folded[place] = _regrouped(x, self.examples)
        return _regrouped(op.fused(self, *folded), rows)

    def rate(self, name: str, step: int) -> Tensor | float:
        raise AssertionError("nothing descends after the last step")

    def here(self, op: SimOp) -> slice:
        return slice(0, self.inputs.shape[1])

    def lazy(self, op: SimOp) -> bool:
        return False

    def frees(self, op: SimOp, value: Value) -> bool:
        return not self.recorded and (op, value) in self.plan.freed

    def shared(self, op: SimOp, x: Tensor) -> Tensor | None:
        return None

    def allowed(self, queries: int, keys: int, window: int = 0) -> Tensor | None:
        if window >= keys:
            window = 0
        if self.seen is None and not window and queries in (1, keys):
            return None
        key = (queries, keys, window)
        if key not in self._masks:
            every = torch.arange(keys, device=self.positions.device)
            places = every[keys - queries :, None]
            mask = every <= places
            if window:
                mask = mask & (every > places - window)
            mask = mask[None]
            if self.seen is not None:
                mask = mask & self.seen
            self._masks[key] = mask[:, None]
        return self._masks[key]

    def train(self, length: int, step: int) -> Tensor | None:
        raise AssertionError("nothing is trained on after the last step")


def _regrouped(x: Tensor, batch: int) -> Tensor:
    """Return ``[batch, B n / batch, ...]`` of ``x [B, n, ...]``; a view if all experts of a token read one vector."""
    sizes = (batch, x.shape[0] * x.shape[1] // batch)
    if x.dim() == 4 and x.stride(2) == 0:
        return x[:, :, 0].reshape(*sizes, -1)[:, :, None].expand(-1, -1, x.shape[2], -1)
    return x.reshape(*sizes, *x.shape[2:])
