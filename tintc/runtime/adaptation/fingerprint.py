"""Which weights a simulator has: in a file's words, and whether they are still those of a moment ago."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tintc.runtime.artefact.beside import text_digest

if TYPE_CHECKING:
    from tintc.runtime.model.causal_lm import TintForCausalLM

SAMPLED, GLANCED = 4096, 16
"""Numbers of each tensor that a simulator is known by, and that a glance at it takes in."""


def fingerprint(sim: TintForCausalLM) -> str:
    """sha256 over the program and numbers from every tensor of the auxiliary: two models of one shape differ."""
    digest = hashlib.sha256(text_digest(sim.config.program or "").encode())
    for kind in (sim.tables, sim.prefixes):
        for name, parameter in kind.named_parameters():
            digest.update(name.encode() + _some(parameter, SAMPLED).cpu().float().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Moment:
    """The tensors of the auxiliary as they are at one moment.

    places: where each lies and how often it was written to; numbers: a few of each, because torch does not count what
    is written through ``.data``.
    """

    places: tuple[tuple[int, int], ...]
    numbers: Tensor

    @classmethod
    def of(cls, sim: TintForCausalLM) -> Moment:
        return cls(_places(sim), _numbers(sim))

    def in_place(self, sim: TintForCausalLM) -> bool:
        """Whether they are where they were and torch knows of no change; cheap enough for every token."""
        return _places(sim) == self.places

    def lasts(self, sim: TintForCausalLM) -> bool:
        """The same, after a look at their numbers."""
        return self.in_place(sim) and torch.equal(_numbers(sim), self.numbers)


def _places(sim: TintForCausalLM) -> tuple[tuple[int, int], ...]:
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in _stored(sim))


def _numbers(sim: TintForCausalLM) -> Tensor:
    return torch.cat([_some(tensor, GLANCED) for tensor in _stored(sim)])


def _stored(sim: TintForCausalLM) -> Iterator[Tensor]:
    return (tensor for kind in (sim.tables, sim.prefixes) for tensor in kind.parameters())


def _some(tensor: Tensor, count: int) -> Tensor:
    flat = tensor.detach().flatten()
    return flat[:: max(1, flat.numel() // count)]
