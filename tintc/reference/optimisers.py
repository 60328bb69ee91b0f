"""What explicit fine-tuning makes of gradients: plain steps, momentum, normalised steps, decay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.ir.auxiliary import AuxOp, Experts, Linear, Norm
from tintc.ir.core import Program
from tintc.lowering.pipeline import AUXILIARY_PASSES, run_passes
from tintc.options import Options
from tintc.reference.groups import Member

Tensors = dict[str, Tensor]
TINY = 1e-12
"""Norms far below this count as zero: a simulator adds its square to a squared norm."""


@dataclass(frozen=True)
class Steps:
    """The rule of the steps. optimizer, normalize, momentum, decay: as for `tintc.compile`."""

    optimizer: str = "sgd"
    normalize: str | None = None
    momentum: float | None = None
    decay: float = 0.0

    @property
    def options(self) -> Options:
        """Return the same as options of a compilation; raise `OptionError` for what does not fit together."""
        return Options(optimizer=self.optimizer, normalize=self.normalize, momentum=self.momentum, decay=self.decay)

    def checked(self) -> Steps:
        """Return it if its settings fit together; raise `OptionError` if not."""
        _ = self.options
        return self


@dataclass(frozen=True)
class Layer:
    """Parameters that one norm is taken of together. members: their rows, by the tensors' names."""

    members: tuple[tuple[str, Member | None], ...]


def layers_of(program: Program | None, tensors: Mapping[str, Tensor]) -> list[Layer]:
    """Return the layers of those tensors: weight and bias of each op of a program, then what no op has, one by one.

    program: an imported one, None: not to be asked.
    """
    layers: dict[tuple[str, ...], Layer] = {}
    if program is not None:
        for names, layer in _of_program(program, tensors):
            layers.setdefault(names, layer)
    seen = {name for layer in layers.values() for name, _ in layer.members}
    alone = [Layer(((name, None),)) for name in tensors if name not in seen]
    return [*layers.values(), *alone]


def _of_program(program: Program, tensors: Mapping[str, Tensor]) -> Iterator[tuple[tuple[str, ...], Layer]]:
    program = run_passes(AUXILIARY_PASSES, program, Options())
    for op in program.ops:
        if not isinstance(op, Linear | Experts | Norm):
            continue
        assert isinstance(op, AuxOp)
        own = [name for key, name in op.parameters().items() if key in ("weight", "bias")]
        places = [program.parameters[name] for name in own]
        members = tuple((where.source, Member(where, "", -1)) for where in places if where.source in tensors)
        if members:
            yield tuple(own), Layer(members)


class Stepper:
    """The steps of one text. layers: whose norms are taken; start: the parameters before the first step."""

    def __init__(self, steps: Steps, layers: list[Layer], start: Tensors):
        self.options = steps.options
        self.layers = layers
        self.start = start
        self.running: Tensors = {}

    def step(self, parameters: Tensors, gradients: Tensors, lr: float) -> Tensors:
        """Return the parameters that descend, after a step."""
        kept = self.options.kept_momentum
        if kept and self.running:
            self.running = {name: kept * self.running[name] + g for name, g in gradients.items()}
        else:
            self.running = gradients
        moved: Tensors = {}
        for name, direction in self._directions().items():
            away = parameters[name] - self.start[name]
            moved[name] = parameters[name] - lr * (direction + self.options.decay * away)
        return moved

    def _directions(self) -> Tensors:
        """Return what the learning rate multiplies."""
        norm_of = self.options.norm_of
        if norm_of is None:
            return self.running
        if norm_of == "all":
            size = _length(list(self.running.values()))
            return {name: g / size for name, g in self.running.items()}
        directions = {name: g.clone() for name, g in self.running.items()}
        for layer in self.layers:
            parts: list[Tensor] = []
            for name, member in layer.members:
                parts += [directions[name]] if member is None else member.rows(directions[name])
            size = _length(parts)
            for part in parts:
                part /= size
        return directions


def _length(parts: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of tensors together."""
    lengths = torch.stack([torch.linalg.vector_norm(part) for part in parts])
    return torch.hypot(torch.linalg.vector_norm(lengths), lengths.new_tensor(TINY))
