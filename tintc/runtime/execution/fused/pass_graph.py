"""Recorded passes: one graph for a bucket of batch, length and train tokens, and which texts it serves.

A text that is shorter than its bucket is filled up on the right, where causal attention keeps earlier tokens from
seeing anything, and a batch with rows that are not trained on. So the results that are handed out are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tintc.ir.inputs import Inputs
from tintc.runtime.execution.fused.batches import budget_of, plan_for, sizes_of
from tintc.runtime.execution.fused.executor import FusedExecutor
from tintc.runtime.execution.fused.graphs import Recording, surroundings
from tintc.runtime.execution.fused.plan import Sizes
from tintc.runtime.execution.rates import Rates
from tintc.runtime.execution.simulator import Simulator

WASTE = 2
"""A bucket of n tokens serves no batch of fewer than n / `WASTE`, which takes less time without a graph."""


@dataclass(frozen=True)
class Bucket:
    """Passes that one graph serves: of at most so many texts and tokens, the last train token within the first `train`.

    outputs: the program's that they return; padded: whether some tokens may be padding; kept: of how many last
    tokens they return logits, of texts of exactly that length (0: of all tokens, of shorter texts too); update: the
    simulator's kind of updates.
    """

    batch: int
    length: int
    train: int
    outputs: tuple[str, ...]
    padded: bool = False
    kept: int = 0
    update: str = "auto"

    def serves(self, sizes: Sizes, inputs: Inputs, outputs: tuple[str, ...], update: str) -> bool:
        """Return whether a pass of these sizes and inputs is one of them."""
        if (outputs, inputs.kept, update) != (self.outputs, self.kept, self.update) or isinstance(sizes.train, tuple):
            return False
        fits = sizes.batch <= self.batch and sizes.length <= self.length and sizes.train <= self.train
        large = WASTE * sizes.batch * sizes.length >= self.batch * self.length
        if not fits or not large or (self.kept and sizes.length != self.length):
            return False
        return inputs.plain or (self.padded and inputs.only_padding)


class StaticInputs:
    """Inputs of a bucket, in memory that stays."""

    def __init__(self, bucket: Bucket, device: torch.device):
        """Make them empty, of texts that are not trained on."""
        shape = (bucket.batch, bucket.length)
        self.ids = torch.zeros(shape, dtype=torch.long, device=device)
        self.positions = torch.zeros_like(self.ids)
        self.real = torch.ones(shape, dtype=torch.bool, device=device)
        self.train = torch.zeros_like(self.real)
        self.loss_positions = torch.zeros_like(self.real)
        allowed = self.real[:, None, :].expand(-1, bucket.length, -1)
        inputs = Inputs(self.ids, self.positions, allowed, self.train, self.loss_positions, bucket.kept)
        self.inputs = inputs.knowing(plain=not bucket.padded, only_padding=True)

    def fill(self, inputs: Inputs) -> None:
        """Copy inputs of no more texts and tokens; what is left is real tokens that nothing is made of."""
        parts = {"ids": inputs.input_ids, "positions": inputs.position_ids, "real": inputs.real_tokens}
        parts |= {"train": inputs.train, "loss_positions": inputs.loss_positions}
        for name, tensor in parts.items():
            buffer: Tensor = getattr(self, name)
            if tensor.shape != buffer.shape:
                buffer.fill_(name == "real")
            buffer[: tensor.shape[0], : tensor.shape[1]].copy_(tensor)


class StaticRates:
    """Given rates in memory that stays; a pass that is given none reads the simulator's own."""

    def __init__(self, rates: Rates | None, batch: int):
        """Make room for rates of the same layers."""
        self.rates = None
        if rates is not None:
            self.rates = rates.resized(batch)

    def takes(self, rates: Rates | None) -> bool:
        """Return whether rates are given of the same layers."""
        if rates is None or self.rates is None:
            return rates is self.rates
        same = (rates.others is None) == (self.rates.others is None)
        return same and rates.by_layer.keys() == self.rates.by_layer.keys()

    def fill(self, rates: Rates | None) -> None:
        """Copy rates of no more texts."""
        if rates is not None and self.rates is not None:
            self.rates.copy_rows(rates)


class PassGraph:
    """The recorded pass of a bucket."""

    def __init__(self, sim: Simulator, bucket: Bucket, rates: Rates | None):
        """Record it. rates: any of the layers of which passes will be given some, None if they will be given none.

        Raises `InputError` if memory does not take the bucket.
        """
        self.bucket = bucket
        self.surroundings = surroundings()
        self._sizes = Sizes(bucket.batch, bucket.length, bucket.train, sim.config.vocab_size, bucket.padded)
        with torch.inference_mode(False), torch.no_grad():
            self._inputs = StaticInputs(bucket, sim.device)
            self._rates = StaticRates(rates, bucket.batch)
            self._recording: Recording = sim.graphs.record(sim, self.runner(sim))

    def runner(self, sim: Simulator) -> Callable[[], dict[str, Any]]:
        """Return the function whose run is recorded: a fused pass over the bucket's buffers."""
        budget = budget_of(sim, self.bucket.outputs)
        plan = plan_for(sim, budget, self._sizes)
        if plan is None:
            raise budget.refusal(self._sizes)
        return lambda: FusedExecutor(sim, self._inputs.inputs, plan, self._rates.rates, {}, on_device=True).run()

    def same(self, bucket: Bucket, rates: Rates | None) -> bool:
        """Return whether it serves just what a graph of this bucket and these rates would."""
        return self.bucket == bucket and self._rates.takes(rates) and self.surroundings == surroundings()

    def serves(self, sizes: Sizes, inputs: Inputs, rates: Rates | None, outputs: tuple[str, ...], update: str) -> bool:
        """Return whether it may stand in for that pass."""
        known = self._rates.takes(rates) and self.surroundings == surroundings()
        return known and self.bucket.serves(sizes, inputs, outputs, update)

    def replay(self, inputs: Inputs, rates: Rates | None) -> dict[str, Tensor]:
        """Return the outputs of a pass that it serves, in memory of their own."""
        batch, length = inputs.shape
        with torch.no_grad():
            self._inputs.fill(inputs)
            self._rates.fill(rates)
            self._recording.replay()
            results = self._recording.results
            return {label: results[label][:batch, :length].clone() for label in self.bucket.outputs}


def replay_pass(
    sim: Simulator, inputs: Inputs, rates: Rates | None, outputs: tuple[str, ...]
) -> dict[str, Tensor] | None:
    """Return the outputs of a pass by the graph of the smallest bucket that serves it; None if there is none."""
    graphs = sim.graphs.of_kind(sim, PassGraph)
    if not graphs:
        return None
    sizes = sizes_of(inputs, sim.config.vocab_size)
    serving = [graph for graph in graphs if graph.serves(sizes, inputs, rates, outputs, sim.update)]
    if not serving:
        return None
    smallest = min(serving, key=lambda graph: (graph.bucket.batch * graph.bucket.length, graph.bucket.train))
    return smallest.replay(inputs, rates)
