"""The sizes of a run, and the decisions of its plan: what the ops' counts of their fused form read.

Counts are per example of the batch, and made from sizes alone, before anything runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tintc.ir.core import Value

if TYPE_CHECKING:
    from tintc.ir.simulator.interface.base import SimOp

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
    def most_trained(self) -> int: ...
    def train_end(self, step: int) -> int: ...
    @property
    def vocab(self) -> int: ...


class Deferral(NamedTuple):
    """An update that fused execution can leave pending. layer: whose; keeps: values it then needs to the end."""

    layer: str
    keeps: tuple[Value, ...]


class PendingUpdate(NamedTuple):
    """An update that a weight value carries: its input X, and how many positions of it."""

    source: Value
    train: int


@dataclass
class FusedCounts:
    """Everything that an op may read to count its fused form, and what it notes for the ops after it.

    lengths: positions computed of each op's results; lazy: descents left pending; recorded: by autograd; pending: the
    updates that a weight value carries; scores: score products that an earlier op computes.
    """

    sizes: FusedSizes
    lengths: Mapping[SimOp, int]
    lazy: Set[SimOp]
    recorded: bool = False
    pending: dict[Value, tuple[PendingUpdate, ...]] = field(default_factory=dict)
    scores: set[tuple[Value, PendingUpdate, int]] = field(default_factory=set)

    def trained(self, op: SimOp) -> int:
        """Return the number of positions up to the last train token of the op's step."""
        return self.sizes.train_end(op.step)

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
