"""The sizes of a run, and the decisions of its plan: what the ops' counts of their fused form read.

Counts are per example of the batch, and made from sizes alone, before anything runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from tintc.ir.core import Op, Value

DIFFERENCE_BYTES = 16
"""Bytes per entry while a finite difference runs: four numbers, in fp32 whatever the dtype."""


class FusedSizes(Protocol):
    """Sizes of one run: batch, length of the text, position of the last train token plus one (0: none) in a step and
    at most, vocabulary."""

    @property
    def batch(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def last_train_end(self) -> int: ...
    def train_end(self, step: int) -> int: ...
    @property
    def vocab(self) -> int: ...


class Deferral(NamedTuple):
    """An update that fused execution can leave pending.

    layer: whose; keeps: values it then needs to the end; always: it is never carried out while the program runs.
    """

    layer: str
    keeps: tuple[Value, ...]
    always: bool = False


class PendingUpdate(NamedTuple):
    """An update that a weight value carries: its input X, and how many positions of it."""

    source: Value
    train: int


@dataclass
class CostModel:
    """Everything that an op may read to count its fused form, and what it notes for the ops after it.

    lengths: positions computed of each op's results; lazy: descents left pending; recorded: by autograd; pending: the
    updates that a weight value carries; scores: score products that an earlier op computes.
    """

    sizes: FusedSizes
    lengths: Mapping[Any, int]
    lazy: Set[Op]
    recorded: bool = False
    pending: dict[Value, tuple[PendingUpdate, ...]] = field(default_factory=dict)
    scores: set[tuple[Value, PendingUpdate, int]] = field(default_factory=set)

    def train_end(self, step: int) -> int:
        """Return the number of positions up to the last train token of a step."""
        return self.sizes.train_end(step)

    def updates(self, weights: Value) -> tuple[PendingUpdate, ...]:
        """Return the pending updates that `weights` carries."""
        return self.pending.get(weights, ())

    def first_scores(self, x: Value, update: PendingUpdate, length: int) -> bool:
        """Return True if no op before has taken ``x X^T`` over `length` positions; those that share both inputs share
        it."""
        key = (x, update, length)
        first = key not in self.scores
        self.scores.add(key)
        return first


class FusedCost(Op):
    """Time and memory of the fused form."""

    def multiply_adds(self, costs: CostModel, *operands: Value) -> int:
        """Count the multiply-adds of the fused form's products, per example. Called once per op, in the program's
        order."""
        return 0

    def entries(self, costs: CostModel, result: Value) -> int:
        """Count the entries of one of the results in fused execution, per example."""
        return costs.lengths[self] * result.type.per_token

    def scratch(self, costs: CostModel, itemsize: int) -> int:
        """Return the bytes per example of what exists only while the fused form runs. itemsize: bytes of a number in
        the dtype."""
        return itemsize * costs.lengths[self] * self.results[0].type.per_token
