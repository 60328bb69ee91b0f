"""The weights that a simulator's descent has left, for as many continuations as are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from tintc.errors import OptionError
from tintc.ir.core import Value
from tintc.ir.simulator.interface.fused_base import FusedWeights, Pending
from tintc.ir.simulator.ops.linear_descent import materialise
from tintc.ir.simulator.shared.grouped import carried_out
from tintc.ir.simulator.shared.linear_common import bias_dims
from tintc.runtime.adaptation.continuation import AdaptiveSimulator, base_weights, stored_weights
from tintc.runtime.adaptation.fingerprint import WeightsSnapshot, fingerprint
from tintc.runtime.adaptation.moved_weights import moved
from tintc.runtime.execution.memory import most_bytes

CHANGED = "The simulator's stored weights were trained, edited or cast after the state was made; adapt again."


def state_of(state: object, sim: AdaptiveSimulator) -> AdaptedWeights:
    """Return what a user passed as a state, for `sim`; raise `OptionError` if it is none, or another's."""
    if not isinstance(state, AdaptedWeights):
        raise OptionError(
            f"The state is of type {type(state).__name__}; pass what sim.adapt(...) has returned, or "
            "tintc.AdaptedState.load(path, sim)."
        )
    return state.of(sim)


class AdaptedWeights:
    """The updated weights of each of `examples` texts, by their value in the program of `sim`.

    A linear layer's update is carried out or pending, as `FusedWeights` describes; layers that no step updates are not
    in it. Made by `sim.adapt` or by `AdaptedState.load`, and valid while the simulator's stored weights are what they
    were then: those of all other layers are read from it.
    """

    def __init__(
        self,
        sim: AdaptiveSimulator,
        weights: Mapping[Value, FusedWeights],
        examples: int,
        snapshot: WeightsSnapshot | None = None,
    ):
        """Keep the weights. snapshot: of the stored weights at the time when these were made of them (None: of now)."""
        self.sim = sim
        self.weights = dict(weights)
        self.examples = examples
        self.snapshot = snapshot or WeightsSnapshot.of(sim)
        self._values: dict[Value, FusedWeights] | None = None
        self._elsewhere: Self | None = None

    def _with(self, weights: Mapping[Value, FusedWeights], examples: int) -> Self:
        """Return a state with other weights, made of these alone."""
        return type(self)(self.sim, weights, examples, self.snapshot)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a state for a copied cache; it shares weights, as nothing is ever changed through a state."""
        return self._with(self.weights, self.examples)

    @property
    def values(self) -> dict[Value, FusedWeights]:
        """Return everything that a continuation reads: these weights, and the stored ones of other layers.

        The latter are views of parameters, which `check` has seen where they were. They are kept from token to token
        where autograd does not record.
        """
        if torch.is_grad_enabled():
            return stored_weights(self.sim) | self.weights
        if self._values is None:
            self._values = stored_weights(self.sim) | self.weights
        return self._values

    def settled(self) -> Self:
        """Return the same, its updates carried out where that makes the next tokens cheaper and there is memory for it.

        A token's time is that of reading weights. Pending, an update of t tokens costs ``t (din + dout)`` more of each
        example; carried out, every example has weights of its own to read. Those of experts stay pending while they are
        fewer numbers than all experts' weights: a token reads few of them. So a state is never larger than its weights
        carried out, or one update. What was carried out before stays so.
        """
        left = most_bytes(self.sim)
        stored = base_weights(self.sim)
        weights: dict[Value, FusedWeights] = {}
        for value, w in self.weights.items():
            if w.pending and w.weight is not None:
                pending = sum(update.dy.numel() + update.x.numel() for update in w.pending)
                shared = w.weight.shape[-len(value.type.dims) :].numel()
                carried = self.examples * shared
                needed = carried * w.weight.element_size()
                cheaper = value.type.kind == "linear" and carried < shared + pending and needed < left
                if cheaper or pending >= carried or not _same_memory(w.weight, stored[value].weight):
                    left -= needed
                    w = materialised(w)
            if self.examples == 1 and not w.pending:
                w = _without_batch(value, w)
            weights[value] = w
        return self._with(weights, self.examples)

    def rows(self, indices: Tensor, rows: int) -> Self:
        """Return the state of these of `rows` rows, which the examples share evenly; each then has weights of its
        own."""
        if self.examples == 1:
            return self
        chosen = (indices // (rows // self.examples)).to(self.sim.device)

        def take(tensor: Tensor | None, dims: int) -> Tensor | None:
            if tensor is None or tensor.dim() <= dims:
                return tensor
            return tensor[chosen]

        weights = {}
        for value, w in self.weights.items():
            pending = tuple(_rows_of(update, chosen) for update in w.pending)
            weights[value] = FusedWeights(take(w.weight, _dims(value)), take(w.bias, bias_dims(value.type)), pending)
        return self._with(weights, len(chosen))

    def example(self, index: int) -> Self:
        """Return the state of one of its texts; raise `OptionError` if there is no such text."""
        if not 0 <= index < self.examples:
            raise OptionError(f"The state has {self.examples} examples; choose one from 0 to {self.examples - 1}.")
        chosen = self.rows(torch.tensor([index]), self.examples)
        weights = {value: _without_batch(value, materialised(w)) for value, w in chosen.weights.items()}
        return self._with(weights, 1)

    def of(self, sim: AdaptiveSimulator) -> Self:
        """Return this state for `sim`, which may be another object of its simulator, such as a second load.

        Raises `OptionError` if it is another simulator."""
        if sim is self.sim:
            return self
        if self._elsewhere is None or self._elsewhere.sim is not sim:
            self.check_current()
            if fingerprint(sim) != fingerprint(self.sim):
                raise OptionError(
                    "The state belongs to another simulator, of another program or other weights; adapt this one, or "
                    "use the state with the simulator that made it."
                )
            values = {value.name: value for op in sim.program.ops for value in op.results}
            weights = {values[value.name]: _rename_sources(values, w) for value, w in self.weights.items()}
            self._elsewhere = type(self)(sim, weights, self.examples)
        return self._elsewhere

    def check_current(self) -> None:
        """Raise `OptionError` unless the simulator's stored weights are what they were, as far as a look can tell.

        Where they were moved, to another device or to other memory of one, these follow them.
        """
        if not self.snapshot.lasts(self.sim):
            raise OptionError(CHANGED)
        if not self.snapshot.in_place(self.sim):
            self._follow()

    def _follow(self) -> None:
        """Take stored weights from where they lie now, and bring all others to their device."""
        stored = base_weights(self.sim)
        device = self.sim.device
        self.weights = {value: moved(w, stored[value], self.snapshot, device) for value, w in self.weights.items()}
        self.snapshot = WeightsSnapshot.of(self.sim)
        self._values = None

    def check(self, sim: AdaptiveSimulator, rows: int) -> None:
        """Raise `OptionError` unless `sim`, whose state it is, can continue `rows` texts with these weights."""
        if not self.snapshot.in_place(sim):
            self.check_current()
        if rows % self.examples:
            raise OptionError(
                f"The state has the weights of {self.examples} examples and the batch {rows} rows; pass one text for "
                "each example, or as many for each."
            )
        tensors = [tensor for w in self.weights.values() for tensor in (w.weight, w.bias) if tensor is not None]
        pending = [update.dy for w in self.weights.values() for update in w.pending]
        for tensor in tensors[:1]:
            if tensor.dtype != sim.dtype:
                raise OptionError(
                    f"The state is in {str(tensor.dtype).removeprefix('torch.')} and the simulator is not; adapt it "
                    "again."
                )
        if torch.is_grad_enabled() and any(tensor.is_inference() for tensor in tensors + pending):
            raise OptionError(
                "The weights were adapted in torch.inference_mode(), and autograd cannot use such tensors; adapt under "
                "torch.no_grad(), or predict under it."
            )


def materialised(w: FusedWeights) -> FusedWeights:
    """Return weights without pending updates."""
    updates = w.pending
    w = replace(w, pending=())
    for update in updates:
        if update.experts is not None:
            w = carried_out(w, update)
        else:
            w = materialise(w, update, overwrite=True)
    return w


def _same_memory(a: Tensor, b: Tensor | None) -> bool:
    """Return True if both are views of the same numbers."""
    return b is not None and a.dim() == b.dim() and a.data_ptr() == b.data_ptr()


def _rows_of(update: Pending, chosen: Tensor) -> Pending:
    """Return an update of the examples that `chosen` names."""
    experts = update.experts
    if experts is not None:
        experts = experts[chosen]
    return replace(update, dy=update.dy[chosen], x=update.x[chosen], experts=experts)


def _rename_sources(values: Mapping[str, Value], w: FusedWeights) -> FusedWeights:
    """Return the same weights, their updates' inputs named as in another reading of the program."""
    return replace(w, pending=tuple(replace(update, source=values[update.source.name]) for update in w.pending))


def _without_batch(value: Value, w: FusedWeights) -> FusedWeights:
    """Return weights of one example without their batch dimension, so that any number of rows can share them."""

    def plain(tensor: Tensor | None, dims: int) -> Tensor | None:
        if tensor is None or tensor.dim() <= dims:
            return tensor
        return tensor[0]

    return replace(w, weight=plain(w.weight, _dims(value)), bias=plain(w.bias, bias_dims(value.type)))


def _dims(value: Value) -> int:
    """Return the number of dimensions of the weight, or gain, of one example."""
    return len(value.type.dims)
