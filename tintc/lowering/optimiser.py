"""The modules that make a step of gradients, besides the descents: those of momentum, norms and decay.

Plain descent needs none of them: there a descent subtracts its gradient from the weights itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tintc.ir import simulator as sim
from tintc.ir.core import Type, Value, number
from tintc.lowering.builder import Builder
from tintc.options import Options

PARTS = (("weight", "weight"), ("gain", "weight"), ("bias", "bias"))
"""The parts of weights, and the fields of auxiliary ops that name their parameters."""


@dataclass(frozen=True)
class Source:
    """A layer that is updated. parts: those that descend; layer, role: as in the auxiliary dialect."""

    type: Type
    parts: tuple[str, ...]
    layer: int
    role: str


class Optimiser:
    """What is emitted for the optimiser that `options` choose. sources: the layers that are updated, by name."""

    def __init__(self, options: Options, sources: dict[str, Source]):
        self.options = options
        self.sources = sources
        self.kept: dict[str, Value] = {}
        self.zeros: dict[str, Value] = {}

    def start(self, builder: Builder) -> None:
        """Emit the sums with which the first step begins, and the weights that decay draws back to."""
        if self.options.plain:
            return
        for name, source in self.sources.items():
            zeros = builder.emit(sim.Zeros, (), (source.type,), origin=f"{name}.sum", target=name, **_place(source))
            self.zeros[name] = zeros.result
            if self.options.decay:
                kept = builder.emit(
                    sim.KeptWeights, (), (source.type,), origin=f"{name}.kept", name=name, **_place(source)
                )
                self.kept[name] = kept.result

    def carried(self) -> dict[str, Value]:
        """Return the sums that are handed from step to step, as the first step gets them."""
        if self.options.kept_momentum:
            return self.zeros
        return {}

    def opened(self, builder: Builder, running: dict[str, Value]) -> dict[str, Value] | None:
        """Emit momentum; return the sums to which a step's descents add. None: the descents step the weights."""
        if self.options.plain:
            return None
        if not running:
            return dict(self.zeros)
        sums: dict[str, Value] = {}
        for name, value in running.items():
            factor = self.options.kept_momentum
            sums[name] = self._emit(builder, sim.Momentum, name, (value,), "momentum", target=name, factor=factor)
        return sums

    def steps(self, builder: Builder, weights: dict[str, Value], sums: dict[str, Value]) -> dict[str, Value]:
        """Emit norms and steps; return the weights after the step. weights: before it."""
        decay = self.options.decay
        norms = self._norms(builder, sums)
        stepped: dict[str, Value] = {}
        for name, source in self.sources.items():
            operands = (weights[name], sums[name], *norms.get(name, ()))
            if decay:
                operands = (*operands, self.kept[name])
            attributes: dict[str, Any] = {"target": name, "parts": source.parts, "normalised": bool(norms)}
            attributes["decay"] = float(decay)
            stepped[name] = self._emit(builder, sim.Step, name, operands, "updated", **attributes)
        return stepped

    def _norms(self, builder: Builder, sums: dict[str, Value]) -> dict[str, tuple[Value]]:
        """Emit the norms that the steps divide by; return them by layer, empty where they divide by none."""
        norm_of = self.options.norm_of
        if norm_of is None:
            return {}
        if norm_of == "all":
            operands = tuple(sums[name] for name in self.sources)
            _mark(builder, "norm")
            one = builder.emit(sim.InverseNorm, operands, (number(),), origin="gradients").result
            return dict.fromkeys(self.sources, (one,))
        return {name: (self._emit(builder, sim.InverseNorm, name, (sums[name],), "norm", number()),) for name in sums}

    def _emit(
        self,
        builder: Builder,
        cls: type[sim.SimOp],
        name: str,
        operands: tuple[Value, ...],
        suffix: str,
        gives: Type | None = None,
        **attributes: Any,
    ) -> Value:
        """Emit a module for a layer and return its result, which has the layer's type unless told otherwise."""
        source = self.sources[name]
        _mark(builder, suffix)
        kinds = (gives or source.type,)
        return builder.emit(cls, operands, kinds, origin=name, **_place(source), **attributes).result


def _place(source: Source) -> dict[str, Any]:
    return {"layer": source.layer, "role": source.role}


def _mark(builder: Builder, suffix: str) -> None:
    """Mark what is emitted next as a part of the descent."""
    builder.phase = "descent"
    builder.suffix = suffix
