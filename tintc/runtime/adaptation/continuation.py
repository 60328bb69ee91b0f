"""The part of a program that predicts from given weights, and the weights that it begins with.

A simulator's last forward pass is all that computes the logits from the weights as the descent has left them: walking
back from the logits, and stopping at weights, finds it. `continued_run` runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

from tintc.ir.core import Program, Type, Value
from tintc.ir.liveness import last_reads
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.interface.fused_base import FusedWeights
from tintc.runtime.execution.fused.base_run import stored_parts
from tintc.runtime.execution.simulator import Simulator


class AdaptiveSimulator(Simulator, Protocol):
    """A simulator whose updated weights are kept. tokenizer: the auxiliary's, None if there is none."""

    @property
    def continuation(self) -> Continuation:
        """Return the ops that predict from the updated weights."""
        ...

    @property
    def tokenizer(self) -> Any: ...


class Step(NamedTuple):
    """One op, ready to run. kept: the operands that later tokens depend on, the place-th such op's; weighted: whether
    it reads weights, which may be those of each example; last: values to let go."""

    op: SimOp
    operands: tuple[Value, ...]
    result: Value
    kept: tuple[Value, ...]
    place: int
    weighted: bool
    last: tuple[Value, ...]


@dataclass(frozen=True)
class Continuation:
    """The part of a program that predicts from updated weights.

    ops: from the weights to the logits, in order; stored: those that give weights as they are stored; updated: the
    weights that a descent gives, each with its layer's name.
    """

    ops: tuple[SimOp, ...]
    stored: tuple[SimOp, ...]
    updated: dict[Value, str]

    @property
    def tail(self) -> SimOp:
        """Return the op that gives the logits."""
        return self.ops[-1]

    @cached_property
    def mixing(self) -> tuple[SimOp, ...]:
        """Return the ops that read what is kept of earlier tokens."""
        return tuple(op for op in self.ops if op.CACHED_OPERANDS or op.CARRIES_STATE)

    @cached_property
    def carrying(self) -> tuple[bool, ...]:
        """Return for each of `mixing` whether it carries a state from token to token."""
        return tuple(op.CARRIES_STATE for op in self.mixing)

    @cached_property
    def checked(self) -> tuple[SimOp, ...]:
        """Return the ops that look at their inputs."""
        return tuple(op for op in self.ops if type(op).check is not SimOp.check)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        last = last_reads(self.ops, self.tail.results)
        steps = []
        place = 0
        for op in self.ops:
            gone = tuple(value for value in last[op] if not _is_weights(value))
            weighted = any(_is_weights(value) for value in op.operands)
            kept = remembered(op)
            steps.append(Step(op, op.operands, op.result, kept, place, weighted, gone))
            place += bool(kept) or op.CARRIES_STATE
        return tuple(steps)

    @cached_property
    def above(self) -> Continuation:
        """Return the ops alone whose results depend on updated weights."""
        changed: set[Value] = set(self.updated)
        ops: list[SimOp] = []
        for op in self.ops:
            if changed.intersection(op.operands):
                ops.append(op)
                changed.update(op.results)
        return Continuation(tuple(ops), self.stored, self.updated)

    @cached_property
    def inputs(self) -> tuple[Value, ...]:
        """Return the values of tokens that the ops read and do not compute."""
        computed = {result for op in self.ops for result in op.results}
        read = dict.fromkeys(value for op in self.ops for value in op.operands if not _is_weights(value))
        return tuple(value for value in read if value not in computed)

    @cached_property
    def freed(self) -> frozenset[tuple[SimOp, Value]]:
        """Return ops with the values that they are the last to read, and read once."""
        return frozenset(
            (step.op, value) for step in self.steps for value in step.last if step.operands.count(value) == 1
        )


def remembered(op: SimOp) -> tuple[Value, ...]:
    """Return the operands that the results at later tokens depend on."""
    return tuple(op.operands[place] for place in op.CACHED_OPERANDS)


def continuation_of(program: Program) -> Continuation:
    """Return the continuation of a straight-line simulator program."""
    producers = program.producers()
    wanted = {program.outputs["logits"]}
    weights: dict[Value, None] = {}
    ops: list[SimOp] = []
    for op in reversed(program.ops):
        if isinstance(op, SimOp) and wanted.intersection(op.results):
            ops.append(op)
            wanted.update(value for value in op.operands if not _is_weights(value))
            weights |= dict.fromkeys(value for value in op.operands if _is_weights(value))
    layers = {value: _layer(value, producers) for value in weights}
    stored = {value: producers[value] for value in weights if producers[value].stored_weight() is not None}  # pyright: ignore[reportAttributeAccessIssue]
    return Continuation(
        ops=tuple(reversed(ops)),
        stored=tuple(op for op in stored.values() if isinstance(op, SimOp)),
        updated={value: name for value, name in layers.items() if value not in stored},
    )


def stored_weights(sim: AdaptiveSimulator) -> dict[Value, FusedWeights]:
    """Return the weights that the continuation reads as they are stored, as views of the parameters."""
    return {op.result: _as_stored(sim, op) for op in sim.continuation.stored}


def weights_by_layer(sim: AdaptiveSimulator) -> dict[str, tuple[Type, FusedWeights]]:
    """Return the stored weights of every layer that has any, updated or not, with their types."""
    stored = [op for op in sim.program.ops if isinstance(op, SimOp) and op.stored_weight() is not None]
    return {str(op.stored_weight()): (op.result.type, _as_stored(sim, op)) for op in stored}


def base_weights(sim: AdaptiveSimulator) -> dict[Value, FusedWeights]:
    """Return the stored weights that each of the updated weights begins as."""
    stored = weights_by_layer(sim)
    return {value: stored[layer][1] for value, layer in sim.continuation.updated.items()}


def _as_stored(sim: AdaptiveSimulator, op: SimOp) -> FusedWeights:
    run: Any = SimpleNamespace(stored=partial(stored_parts, sim))
    return op.fused(run)


def _is_weights(value: Value) -> bool:
    return value.type.is_weights


def _layer(value: Value, producers: Mapping[Value, Any]) -> str:
    """Return the layer whose weights these are, by going back to those that are stored."""
    op = producers[value]
    while op.stored_weight() is None:
        if op.updated_weight() is not None:
            return op.updated_weight()
        op = producers[op.identity_operand()]
    return op.stored_weight()
