"""Telling a simulator's weights from others: by a digest for files, and by a snapshot for changes in memory.

Both sample: an edit of a few numbers of a large tensor through ``.data`` can escape them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.runtime.adaptation.continuation import AdaptiveSimulator
from tintc.runtime.artefact.beside import text_digest
from tintc.runtime.execution.fused.packed_linear import pack_weights
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

    places: where each lies and how often it was written to; numbers: a few of each, because torch does not count what
    is written through ``.data``.
    """

    places: tuple[tuple[int, int], ...]
    numbers: Tensor

    @classmethod
    def of(cls, sim: AdaptiveSimulator) -> WeightsSnapshot:
        """Return where the weights lie now, which is where fused runs leave them."""
        pack_weights(sim)
        return cls(_places(sim), _numbers(sim))

    def in_place(self, sim: AdaptiveSimulator) -> bool:
        """Return whether they are where they were and torch knows of no change; cheap enough for every token."""
        return _places(sim) == self.places

    def lasts(self, sim: AdaptiveSimulator) -> bool:
        """Return the same, after a look at their numbers."""
        return self.in_place(sim) and torch.equal(_numbers(sim), self.numbers)


def _places(sim: AdaptiveSimulator) -> tuple[tuple[int, int], ...]:
    return tuple(map(place_of, _stored(sim)))


def _numbers(sim: AdaptiveSimulator) -> Tensor:
    return torch.cat([sample_of(tensor, GLANCED) for tensor in _stored(sim)])


def _stored(sim: AdaptiveSimulator) -> Iterator[Tensor]:
    return (tensor for kind in (sim.tables, sim.prefixes) for tensor in kind.parameters())
