"""A plan of fused execution: which ops run, on which part of the text, with which kind of update.

`planner` makes it, from the program, the wanted outputs and the sizes of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from tintc.ir.core import Value
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.interface.cost_model import CostModel, PendingUpdate


class Start(NamedTuple):
    """A layer whose weights a run is given, in place of the stored ones. pending: the updates that they carry."""

    layer: str
    pending: tuple[PendingUpdate, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """Sizes of one run: batch, length of the text, vocabulary; train: position of the last train token plus one (0:
    none), of all steps or of each; masked: whether some tokens do not see all earlier ones; starts: the layers that do
    not start from their stored weights; filled: whether every token before its step's last train token is one, in every
    example."""

    batch: int
    length: int
    train: int | tuple[int, ...]
    vocab: int
    masked: bool = False
    starts: tuple[Start, ...] = ()
    filled: bool = False

    def train_end(self, step: int) -> int:
        """Return the position of a step's last train token plus one."""
        if isinstance(self.train, int):
            return self.train
        return self.train[step]

    @property
    def train_ends(self) -> tuple[int, ...]:
        """Return `train_end` of every step, once where all are alike."""
        if isinstance(self.train, int):
            return (self.train,)
        return self.train

    @property
    def last_train_end(self) -> int:
        return max(self.train_ends)

    def shortened(self, length: int) -> Sizes:
        """Return the sizes of texts of that length, the same share of them trained on."""
        ends = tuple(end * length // self.length for end in self.train_ends)
        if isinstance(self.train, int):
            return replace(self, length=length, train=ends[0])
        return replace(self, length=length, train=ends)

    def read(self, op: SimOp, length: int) -> int:
        """Return the number of positions of its operands that an op reads to compute `length` of its results.

        Ops of the loss, backward and descent read those up to the last train token.
        """
        if op.phase == "forward":
            return length
        return self.train_end(op.step)


class Step(NamedTuple):
    """One op of a plan, ready to run: operands resolved; read: how many positions of them; last: values to let go."""

    op: SimOp
    operands: tuple[Value, ...]
    read: int
    last: list[Value]


class PackedProducts(NamedTuple):
    """Products of stored weights with one input that can be taken as one. layers: whose weights they are."""

    ops: tuple[SimOp, ...]
    layers: tuple[str, ...]


@dataclass
class ExecutionPlan:
    """The decisions of a run.

    ops: in order; lengths: positions kept of each op's results; last: values no op after this one reads; alias: what a
    dropped descent's result stands for; lazy: descents left pending; known: an earlier op's result that an op starts
    from, as one more operand (`SimOp.needs_activation_key`); packed: products that share an input; outputs: the wanted
    values by name; shown: what is seen of ops besides their results, as labels and names; peaks: bytes at the peak, by
    size of numbers and whether autograd records the run.
    """

    sizes: Sizes
    ops: list[SimOp]
    lengths: dict[SimOp, int]
    last: dict[SimOp, list[Value]]
    alias: dict[Value, Value]
    lazy: set[SimOp] = field(default_factory=set)
    known: dict[SimOp, Value] = field(default_factory=dict)
    packed: dict[SimOp, PackedProducts] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)
    shown: dict[SimOp, list[tuple[str, str]]] = field(default_factory=dict)
    peaks: dict[tuple[int, bool], int] = field(default_factory=dict)

    def operands(self, op: SimOp) -> tuple[Value, ...]:
        """Return the values that an op reads: its operands, and an earlier result that it can start from."""
        operands = [self.resolve(value) for value in op.operands]
        if op in self.known:
            operands.append(self.known[op])
        return tuple(operands)

    def cost_model(self, recorded: bool = False) -> CostModel:
        """Return what the ops' counts read, with nothing counted yet."""
        return CostModel(self.sizes, self.lengths, self.lazy, recorded, self._pending_at_start())

    def _pending_at_start(self) -> dict[Value, tuple[PendingUpdate, ...]]:
        """Return the updates that weights carry when the run begins."""
        pending = dict(self.sizes.starts)
        layers = {op.result: str(op.stored_weight()) for op in self.ops if op.stored_weight() is not None}
        return {value: pending[layer] for value, layer in layers.items() if layer in pending}

    @cached_property
    def steps(self) -> list[Step]:
        return [Step(op, self.operands(op), self.sizes.read(op, self.lengths[op]), self.last[op]) for op in self.ops]

    def frees(self, op: SimOp, value: Value) -> bool:
        """Return whether `op`, which reads `value` once, is the last that needs it.

        Pending updates need theirs to the end.
        """
        value = self.resolve(value)
        return value in self.last[op] and value not in self.carried and self.operands(op).count(value) == 1

    @cached_property
    def carried(self) -> set[Value]:
        """Return the values that pending updates keep."""
        return {value for op in self.lazy for value in self.operands(op) if value.type.kind in ("tokens", "routed")}

    def resolve(self, value: Value) -> Value:
        while value in self.alias:
            value = self.alias[value]
        return value
