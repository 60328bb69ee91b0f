"""One reverse pass over a program: the gradients met so far, and the weights updated so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tintc.ir import simulator as sim
from tintc.ir.auxiliary import AuxOp
from tintc.ir.core import Type, Value
from tintc.lowering.builder import Builder
from tintc.options import Options


@dataclass(frozen=True)
class WeightGroup:
    """The weights of a linear layer or norm of the auxiliary.

    name: without the tensor's own suffix; parts: parameter names by part.
    """

    name: str
    type: Type
    parts: dict[str, str]


class Sweep:
    """The state of a reverse pass, with which rules emit backward modules and descents.

    values: auxiliary value -> the simulator's; weights: before the update, by layer; layers: of the ops that have one;
    updated: those that descend; wanted: auxiliary values whose gradient some descent needs. Fills `gradients`
    (auxiliary value -> gradient) and `stepped` (layer -> weights after the update). sums: of gradients, by layer, that
    descents add to instead of stepping the weights; None where they step them.
    """

    def __init__(
        self,
        builder: Builder,
        options: Options,
        values: dict[Value, Value],
        weights: dict[str, Value],
        layers: dict[AuxOp, WeightGroup],
        updated: set[AuxOp],
        wanted: set[Value],
        sums: dict[str, Value] | None = None,
    ):
        self.builder = builder
        self.options = options
        self.values = values
        self.weights = weights
        self.layers = layers
        self.updated = updated
        self.wanted = wanted
        self.gradients: dict[Value, Value] = {}
        self.stepped: dict[str, Value] = {}
        self.sums = sums

    def weights_of(self, op: AuxOp) -> tuple[Value, ...]:
        """Return the op's weights as a tuple of one operand; an empty one if it has none."""
        return (self.weights[self.layers[op].name],) if op in self.layers else ()

    def difference(self) -> dict[str, Any]:
        """Return the attributes of a module that takes a finite difference."""
        return {"scheme": self.options.scheme, "fd_step": self.options.fd_step}

    def emit(
        self,
        cls: type[sim.SimOp],
        op: AuxOp,
        operands: tuple[Value, ...],
        phase: str = "backward",
        gives: Type | None = None,
        **more: Any,
    ) -> Value:
        """Emit a module for `op` and return its result, which has the type `gives`, or that of its last operand."""
        return self.emit_many(cls, op, operands, (gives or operands[-1].type,), phase, **more)[0]

    def emit_many(
        self,
        cls: type[sim.SimOp],
        op: AuxOp,
        operands: tuple[Value, ...],
        kinds: tuple[Type, ...],
        phase: str = "backward",
        **more: Any,
    ) -> tuple[Value, ...]:
        """Emit a module for `op` with results of these types; return them."""
        self.builder.phase = phase
        self.builder.suffix = "grad"
        if phase == "descent":
            self.builder.suffix = "updated"
        module = self.builder.emit(cls, operands, kinds, origin=op.result.name, layer=op.layer, role=op.role, **more)
        return module.results

    def receive(self, value: Value, gradient: Value) -> None:
        """Add `gradient` to what `value` has received, if its gradient is wanted."""
        if value not in self.wanted:
            return
        if value in self.gradients:
            self.builder.phase = "backward"
            self.builder.suffix = "grad"
            both = (self.gradients[value], gradient)
            gradient = self.builder.emit(sim.Add, both, (gradient.type,), origin=value.name).result
        self.gradients[value] = gradient

    def descend(self, cls: type[sim.SimOp], op: AuxOp, operands: tuple[Value, ...], **more: Any) -> None:
        """Emit the descent of the op's weights, if they are updated; after that of other ops that share them."""
        if op not in self.updated:
            return
        name = self.layers[op].name
        if self.sums is not None:
            total = self.sums[name]
            operands = (total, *operands)
            self.sums[name] = self.emit(cls, op, operands, "descent", total.type, target=name, sums=True, **more)
            return
        # Gradients are of the weights before the step; the updates of several uses are added one after the other.
        current = self.stepped.get(name, self.weights[name])
        self.stepped[name] = self.emit(cls, op, (current, *operands), "descent", current.type, target=name, **more)
