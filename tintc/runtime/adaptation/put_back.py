"""Weights of a simulator put back into the auxiliary that it was made from.

The simulator's program says which tensor of the auxiliary's checkpoint each of its parameters is a view of, and how:
transposed, certain rows. Updated weights go back the same way, and so do those that were trained from outside.
Everything else is the auxiliary's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from tintc.errors import ModelError
from tintc.ir.auxiliary.interpreter import view, viewed_rows
from tintc.ir.core import Parameter
from tintc.ir.simulator.interface.fused_base import FusedWeights
from tintc.ir.simulator.shared.linear_common import main_part
from tintc.runtime.adaptation.continuation import AdaptiveSimulator, weights_by_layer
from tintc.runtime.adaptation.rebuilt import Target
from tintc.runtime.adaptation.state import AdaptedWeights

CONSTANT = "constant."
"""Begins the names of tensors that the importer has computed."""


def put_back(sim: AdaptiveSimulator, state: AdaptedWeights | None, auxiliary: Target) -> None:
    """Write every part that is not the model's own: what the update of a state of one example has changed (None: no
    update), and what training the simulator's prefixes has."""
    updated: dict[str, FusedWeights] = {}
    if state is not None:
        updated = {layer: state.weights[value] for value, layer in sim.continuation.updated.items()}
    target = _Writing.of(auxiliary, sim)
    constants: list[tuple[Parameter, Tensor, Tensor]] = []
    for layer, (kind, old) in weights_by_layer(sim).items():
        new = updated.get(layer, old)
        main = main_part(kind)
        for part, after, before in ((main, new.weight, old.weight), ("bias", new.bias, old.bias)):
            parameter = sim.program.parameters.get(f"{layer}.{part}")
            if after is None or before is None or parameter is None:
                continue
            after = after.detach().cpu()
            before = before.detach().cpu()
            if parameter.source.startswith(CONSTANT):
                constants.append((parameter, after, before))
            else:
                target.put(parameter, _of_one_head(parameter, after), _of_one_head(parameter, before))
    for parameter, after, before in constants:
        if target.trained or not torch.equal(after, before):
            _add_to_origin(parameter, after, before, target.tensors)


@dataclass
class _Writing:
    """A model while it is written to.

    known: whether its embeddings and head are the simulator's, so that what else differs was trained; trained: whether
    anything did; written: of every tensor the rows that were, by its id.
    """

    model: nn.Module
    tensors: dict[str, Tensor]
    known: bool = False
    trained: bool = False
    written: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, auxiliary: Target, sim: AdaptiveSimulator) -> _Writing:
        """Begin to write; raise `ModelError` if the model's embeddings or its head are not the simulator's."""
        target = cls(auxiliary.model, auxiliary.tensors)
        for name, table in sim.tables.named_parameters():
            parameter = sim.program.parameters[name]
            if parameter.source in target.tensors:
                held = view(parameter, target.viewed(parameter))
                if held.shape != table.shape or not torch.equal(held.to(table.dtype), table.detach().cpu()):
                    raise target.another(parameter)
                target.known = True
        return target

    def viewed(self, parameter: Parameter) -> Tensor:
        """Return the tensor that a parameter is a view of."""
        if parameter.source not in self.tensors:
            raise ModelError(f"{self.name} has no tensor {parameter.source}; pass the model that was compiled.")
        tensor = self.tensors[parameter.source].data
        if tensor.dim() != len(parameter.shape):
            raise self.another(parameter)
        return tensor

    def put(self, parameter: Parameter, after: Tensor, before: Tensor) -> None:
        """Write rows of a view into the tensor that is viewed."""
        tensor = self.viewed(parameter)
        key = id(self.tensors[parameter.source])
        taken = self.written.setdefault(key, torch.zeros(max(tensor.shape), dtype=torch.bool))
        for which, rows, own in viewed_rows(parameter, tensor):
            here = (slice(None),) * parameter.stacked + (own,)
            old = before[here]
            new = after[here]
            if rows.shape != old.shape:
                raise self.another(parameter)
            if bool(taken[which].any()):
                if not torch.equal(rows, new):
                    raise ModelError(
                        f"The tensor {parameter.source} is used in two places that were updated differently, so the "
                        "state cannot be written as one model."
                    )
            elif not torch.equal(rows, old.to(rows.dtype)):
                if not self.known:
                    raise self.another(parameter)
                self.trained = True
            taken[which] = True
            rows.copy_(new)

    def another(self, parameter: Parameter) -> ModelError:
        return ModelError(
            f"{self.name} is not the model that the simulator was compiled from: its {parameter.source} is another. "
            "Pass that model with model=; if the simulator's tables were trained there is none, and no export."
        )

    @property
    def name(self) -> str:
        config = getattr(self.model, "config", None)
        return Path(str(getattr(config, "name_or_path", ""))).name or type(self.model).__name__


def _of_one_head(parameter: Parameter, stored: Tensor) -> Tensor:
    """Return a stored part in its parameter's shape: a gain that all heads share is stored once for each."""
    parts = stored.reshape(-1, *parameter.shape)
    if not torch.equal(parts, parts[:1].expand_as(parts)):
        raise ModelError(
            f"All heads of the model share {parameter.source}, and those of the simulator were trained apart, so they "
            "cannot be written as one model."
        )
    return parts[0]


def _add_to_origin(parameter: Parameter, after: Tensor, before: Tensor, tensors: dict[str, Tensor]) -> None:
    """Add the change of a gain that is its parameter and a number, such as ``1 + w``, to the parameter."""
    name = parameter.source.removeprefix(CONSTANT)
    if name not in tensors:
        name = name.rpartition(".")[0]
    origin = tensors.get(name)
    if origin is None or origin.numel() != before.numel():
        raise ModelError(
            f"The gain {name} is no parameter's, so what was learnt of it has no place in the exported model."
        )
    apart = before.reshape(origin.shape) - origin.data
    rounding = 8 * torch.finfo(before.dtype).eps * float(before.abs().max())
    if float((apart - apart.flatten()[0]).abs().max()) > rounding:
        raise ModelError(f"The gain made of {name} is not it and a number (any more), so it has no place in the model.")
    origin.data += (after - before).reshape(origin.shape)
