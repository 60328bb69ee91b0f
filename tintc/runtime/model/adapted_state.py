"""`AdaptedState`: the weights that `sim.adapt` has left, as users keep, save and export them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tintc.runtime.adaptation.continuation import AdaptiveSimulator
from tintc.runtime.adaptation.state import AdaptedWeights
from tintc.runtime.adaptation.state_batches import average, select, stack
from tintc.runtime.adaptation.state_file import read_state
from tintc.runtime.adaptation.state_writer import write_state

if TYPE_CHECKING:
    from tintc.runtime.adaptation.export_lora import ExportedAdapter


class AdaptedState(AdaptedWeights):
    """The updated weights of each of `examples` texts (see `AdaptedWeights`), to predict with, save or export."""

    @classmethod
    def of_weights(cls, weights: AdaptedWeights) -> AdaptedState:
        """Return the state that has these weights."""
        return cls(weights.sim, weights.weights, weights.examples, weights.snapshot)

    @property
    def nbytes(self) -> int:
        """Return the bytes of its own tensors: updated weights, or updates that are pending, without the stored weights
        that these are added to."""
        held: dict[tuple[int, int], int] = {}
        for w in self.weights.values():
            tensors = [tensor for update in w.pending for tensor in (update.dy, update.x, update.experts)]
            for tensor in tensors or (w.weight, w.bias):
                if tensor is not None:
                    held[tensor.data_ptr(), tensor.numel()] = tensor.nbytes
        return sum(held.values())

    def __repr__(self) -> str:
        sizes = f"examples={self.examples}, weight_groups={len(self.weights)}, nbytes={self.nbytes:,}"
        return f"{type(self).__name__}({sizes})"

    def select(self, indices: Sequence[int] | Tensor) -> AdaptedState:
        """Return the state of these of its texts, in this order; raise `OptionError` for one that it does not have."""
        return self.of_weights(select(self, indices))

    @classmethod
    def stack(cls, states: Sequence[AdaptedState]) -> AdaptedState:
        """Return one state of the texts of all these, which are one simulator's; raise `OptionError` if they are not,
        or if there are none."""
        return cls.of_weights(stack(states))

    def average(self, shares: Sequence[float] | None = None) -> AdaptedState:
        """Return the state of one text whose weights are the mean of all its texts' weights.

        shares: how much each text counts, divided by their sum (None: all alike).
        """
        return self.of_weights(average(self, shares))

    def save(self, path: str | os.PathLike[str], force: bool = False) -> None:
        """Write the state as one safetensors file, the same bytes for the same state; another state is replaced.

        force: replace any other file too. Raises `ArtefactError` if it cannot be written, or something else is there
        (folders, links and devices are never replaced), and `OptionError` if the simulator's stored weights have
        changed since.
        """
        write_state(self, path, force)

    @classmethod
    def load(cls, path: str | os.PathLike[str], sim: AdaptiveSimulator) -> AdaptedState:
        """Return the state that `save` wrote; raise `ArtefactError` if it is not one, or another simulator's."""
        return cls.of_weights(read_state(path, sim))

    def export(
        self,
        path: str | os.PathLike[str],
        kind: str = "model",
        rank: int | None = None,
        *,
        model: Any = None,
        example: int = 0,
    ) -> ExportedAdapter | None:
        """Write the updated model, or the update: kind ``model``, an ordinary Hugging Face model of the auxiliary's own
        type; ``lora``, a folder with an adapter in PEFT's format, to load upon the auxiliary.

        rank: of the adapter; below the update's own it keeps the largest singular values of each layer's change, and
        what is returned, and a warning, say how much is left out (None: all, exact up to rounding). model: the
        auxiliary, as an object, a folder, a GGUF file or a hub id (None: what the simulator keeps of it); example:
        whose weights, of a batch. It is written in the simulator's dtype. Raises `ModelError` if the simulator does not
        keep all of the auxiliary, the one that is passed is another, or an adapter cannot hold the change;
        `ArtefactError` if `path` exists or cannot be written; and `OptionError` for a rank that is none, or if the
        simulator's stored weights have changed since. Prefixes that were trained before go with the update; so do
        trained tables, unless a model is passed. An adapter is of what differs from `model`, so pass the model whose
        adapter it is to be if prefixes were trained.
        """
        from tintc.runtime.adaptation import export_hf, export_lora  # which need the frontend, as nothing else here

        export_lora.check_kind(kind, rank)
        chosen = self.example(example)
        if kind == "model":
            export_hf.export_model(chosen, path, model)
            return None
        adapter = export_lora.export_lora(chosen, path, rank, model)
        if adapter.rank < adapter.full_rank:
            worst = max(adapter.errors, key=lambda name: adapter.errors[name])
            warnings.warn(
                f"The adapter of rank {adapter.rank} leaves out {adapter.error:.2g} of the update, whose rank is "
                f"{adapter.full_rank} (relative Frobenius norm; at most {adapter.errors[worst]:.2g}, of {worst}).",
                stacklevel=2,
            )
        return adapter
