"""Telling a simulator's weights from others: by a digest for files, and by a snapshot for changes in memory.

Both sample: an edit of a few numbers of a large tensor through ``.data`` can escape them.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.runtime.adaptation.continuation import AdaptiveSimulator
from tintc.runtime.artefact.beside import text_digest
from tintc.runtime.execution.watched import place_of, sample_of

SAMPLED, GLANCED = 4096, 16
"""Numbers of each tensor that a simulator is known by, and that a glance at it takes in."""


def fingerprint(sim: AdaptiveSimulator) -> str:
    """Return the sha256 over the program and numbers from every tensor of the auxiliary."""
    digest = hashlib.sha256(text_digest(sim.config.program or "").encode())
    for kind in (sim.tables, sim.prefixes):
        for name, parameter in kind.named_parameters():
            digest.update(name.encode() + sample_of(parameter, SAMPLED).cpu().float().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class WeightsSnapshot:
    """The tensors of the auxiliary as they are at one moment.

    parameters: which they are; places: where each lies and how often it was written to; numbers: a few of each, because
    torch does not count what is written through ``.data``, nor says of a parameter that lies elsewhere now whether it
    was moved or given other numbers.
    """

    parameters: tuple[weakref.ref[Tensor], ...]
    places: tuple[tuple[int, int], ...]
    numbers: Tensor

    @classmethod
    def of(cls, sim: AdaptiveSimulator) -> WeightsSnapshot:
        """Return the weights as they are now."""
        return cls(tuple(map(weakref.ref, _stored(sim))), _places(sim), _numbers(sim))

    def in_place(self, sim: AdaptiveSimulator) -> bool:
        """Return whether they are where they were and torch knows of no change; cheap enough for every token."""
        return _places(sim) == self.places

    def lasts(self, sim: AdaptiveSimulator) -> bool:
        """Return whether they are what they were, wherever they lie, as far as their numbers are looked at."""
        now = list(_stored(sim))
        if len(now) != len(self.parameters) or any(a() is not b for a, b in zip(self.parameters, now, strict=True)):
            return False
        if [writes for _, writes in _places(sim)] != [writes for _, writes in self.places]:
            return False
        numbers = _numbers(sim)
        return numbers.dtype == self.numbers.dtype and torch.equal(numbers.to(self.numbers.device), self.numbers)

    def held(self, tensor: Tensor) -> bool:
        """Return whether a tensor that was alive all the time lies where one of these lay."""
        return any(tensor.data_ptr() == address for address, _ in self.places)


def _places(sim: AdaptiveSimulator) -> tuple[tuple[int, int], ...]:
    return tuple(map(place_of, _stored(sim)))


def _numbers(sim: AdaptiveSimulator) -> Tensor:
    return torch.cat([sample_of(tensor, GLANCED).to(sim.device) for tensor in _stored(sim)])


def _stored(sim: AdaptiveSimulator) -> Iterator[Tensor]:
    return (tensor for kind in (sim.tables, sim.prefixes) for tensor in kind.parameters())
