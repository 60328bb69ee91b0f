"""`AdaptedState`: the weights that a simulator's descent has left, for as many continuations as are wanted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tintc.errors import OptionError
from tintc.ir.core import Value
from tintc.ir.simulator.fused_base import FusedWeights
from tintc.ir.simulator.linear_descent import materialise
from tintc.runtime.fused.available import available_bytes
from tintc.runtime.fused.budget import HEADROOM
from tintc.runtime.fused.continuation import stored_weights

if TYPE_CHECKING:
    from tintc.runtime.model import TintForCausalLM


class AdaptedState:
    """The updated weights of each of `examples` texts, by their value in the program of `sim`.

    A linear layer's update is carried out or pending, as `FusedWeights` describes; layers that no step updates are not
    in it. Made by `sim.adapt` or by `AdaptedState.load`.
    """

    def __init__(self, sim: TintForCausalLM, weights: Mapping[Value, FusedWeights], examples: int):
        self.sim, self.weights, self.examples = sim, dict(weights), examples
        self._seen: tuple[Any, dict[Value, FusedWeights]] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> AdaptedState:
        """A state of its own for a copied cache: neither simulator nor weights are ever changed through a state."""
        return AdaptedState(self.sim, self.weights, self.examples)

    @property
    def values(self) -> dict[Value, FusedWeights]:
        """Everything that a continuation reads: these weights, and the stored ones of all other layers.

        The latter are views of parameters. They are kept from token to token where autograd does not record, and made
        again once a parameter has moved.
        """
        if torch.is_grad_enabled():
            return stored_weights(self.sim) | self.weights
        places = tuple((tensor.data_ptr(), tensor.dtype) for tensor in self.sim.prefixes.parameters())
        if self._seen is None or self._seen[0] != places:
            self._seen = places, stored_weights(self.sim) | self.weights
        return self._seen[1]

    def settled(self) -> AdaptedState:
        """The same, its updates carried out where that makes the next tokens cheaper and there is memory for it.

        A token's time is that of reading weights. Pending, an update of t tokens costs ``t (din + dout)`` more of each
        example; carried out, every example has weights of its own to read.
        """
        left = int(HEADROOM * available_bytes(self.sim.device))
        found: dict[Value, FusedWeights] = {}
        for value, w in self.weights.items():
            if w.pending and w.weight is not None:
                dout, din = w.weight.shape[-2:]
                pending = self.examples * sum(update.x.shape[1] for update in w.pending) * (din + dout)
                carried = self.examples * dout * din
                needed = carried * w.weight.element_size()
                if carried < dout * din + pending and needed < left:
                    left -= needed
                    w = carried_out(w)
            found[value] = _of_one(value, w) if self.examples == 1 and not w.pending else w
        return AdaptedState(self.sim, found, self.examples)

    def rows(self, indices: Tensor, rows: int) -> AdaptedState:
        """The state of these of `rows` rows, which the examples share evenly; each then has weights of its own."""
        if self.examples == 1:
            return self
        chosen = (indices // (rows // self.examples)).to(self.sim.device)

        def take(tensor: Tensor | None, dims: int) -> Tensor | None:
            return tensor[chosen] if tensor is not None and tensor.dim() > dims else tensor

        found = {}
        for value, w in self.weights.items():
            pending = tuple(replace(update, dy=update.dy[chosen], x=update.x[chosen]) for update in w.pending)
            found[value] = FusedWeights(take(w.weight, _dims(value)), take(w.bias, 1), pending)
        return AdaptedState(self.sim, found, len(chosen))

    def example(self, index: int) -> AdaptedState:
        """The state of one of its texts."""
        if not 0 <= index < self.examples:
            raise OptionError(f"The state has {self.examples} examples; choose one from 0 to {self.examples - 1}.")
        chosen = self.rows(torch.tensor([index]), self.examples)
        weights = {value: _of_one(value, carried_out(w)) for value, w in chosen.weights.items()}
        return AdaptedState(self.sim, weights, 1)

    def check(self, sim: TintForCausalLM, rows: int) -> None:
        """Raise `OptionError` unless `sim` can continue `rows` texts with these weights."""
        if self.sim is not sim:
            raise OptionError("The state belongs to another simulator; adapt this one, or load the state for it.")
        if rows % self.examples:
            raise OptionError(
                f"The state has the weights of {self.examples} examples and the batch {rows} rows; pass one text for "
                "each example, or as many for each."
            )
        tensors = [tensor for w in self.weights.values() for tensor in (w.weight, w.bias) if tensor is not None]
        pending = [update.dy for w in self.weights.values() for update in w.pending]
        one = tensors[0] if tensors else None
        if one is not None and (one.device.type != sim.device.type or one.dtype != sim.dtype):
            raise OptionError("The simulator was moved or cast after the state was made; adapt it again.")
        if torch.is_grad_enabled() and any(tensor.is_inference() for tensor in tensors + pending):
            raise OptionError(
                "The weights were adapted in torch.inference_mode(), and autograd cannot use such tensors; adapt under "
                "torch.no_grad(), or predict under it."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state as one safetensors file; raises `ArtefactError` if it cannot be written."""
        from tintc.runtime.state_file import write_state

        write_state(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], sim: TintForCausalLM) -> AdaptedState:
        """The state that `save` wrote; raises `ArtefactError` if it is not one, or another simulator's."""
        from tintc.runtime.state_file import read_state

        return read_state(path, sim)

    def export(self, path: str | os.PathLike[str], model: Any = None, example: int = 0) -> None:
        """Write the updated model as an ordinary Hugging Face model of the auxiliary's own type.

        model: the auxiliary, as an object, a folder, a GGUF file or a hub id (None: where the simulator says it came
        from); example: whose weights, of a batch. It is written in the simulator's dtype. Raises `ModelError` if the
        auxiliary cannot be found or is another, `ArtefactError` if `path` exists or cannot be written.
        """
        from tintc.runtime.export import export_model

        export_model(self.example(example), path, model)


def carried_out(w: FusedWeights) -> FusedWeights:
    """Weights without pending updates."""
    updates = w.pending
    w = replace(w, pending=())
    for update in updates:
        w = materialise(w, update, overwrite=True)
    return w


def _of_one(value: Value, w: FusedWeights) -> FusedWeights:
    """Weights of one example without their batch dimension, so that any number of rows can share them."""

    def plain(tensor: Tensor | None, dims: int) -> Tensor | None:
        return tensor[0] if tensor is not None and tensor.dim() > dims else tensor

    return replace(w, weight=plain(w.weight, _dims(value)), bias=plain(w.bias, 1))


def _dims(value: Value) -> int:
    """Dimensions of the weight, or gain, of one example."""
    return 2 if value.type.kind == "linear" else 1
