"""`rebuilt`: the auxiliary, from nothing but its simulator: its configuration, and the tensors that are kept of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tintc.errors import ArtefactError, ModelError, first_line
from tintc.frontend.alone import renamed
from tintc.frontend.source.bounds import absent_layers, check_sizes
from tintc.ir.auxiliary.interpreter import viewed_rows
from tintc.ir.core import Parameter
from tintc.ir.simulator.shared.linear_common import main_part
from tintc.runtime.adaptation.continuation import AdaptiveSimulator, weights_by_layer
from tintc.runtime.adaptation.description import entries_of, misfit
from tintc.runtime.artefact.names import DESCRIPTION_FILE

SLACK = 1 << 22
"""Numbers that a model may have and the simulator not, so that what is missing can be named."""
SHOWN = 3
"""Tensors named in a message before "and n more"."""


@dataclass
class Target:
    """A model that is written to. tensors: by the names that the simulator's program has for them; adapters: those of
    them that are no tensors of the model, but added to some (see `describe_model`)."""

    model: nn.Module
    tensors: dict[str, Tensor]
    adapters: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, sim: AdaptiveSimulator) -> Target:
        """Return the target of a model: the captured one, or the one that is built of what the simulator keeps."""
        try:
            entries = entries_of(sim.config.described or "")
        except ArtefactError:  # not needed of a model that is at hand
            return cls(model, _tensors(model))
        if type(model).__name__ != entries["class"]:
            return cls(model, _tensors(model))
        return cls.described(model, sim, entries, held_numbers(sim))

    @classmethod
    def described(cls, model: nn.Module, sim: AdaptiveSimulator, entries: dict[str, Any], held: int) -> Target:
        """Return the target of a model that a description is of.

        held: the numbers that the simulator has, of which adapters do not have more. Raises `ArtefactError` for
        adapters that the model cannot have.
        """
        own = _tensors(model)
        made = {entry["of"] for entry in entries["sums"].values()}
        sources = {parameter.source for parameter in sim.program.parameters.values()} | made
        places = [(before, after) for before, after in entries["places"]]
        tensors = {source: own[name] for source in sources if (name := renamed(source, places)) in own}
        adapters = entries["adapters"]
        count = sum(rank * (width + made_width) for rank, width, made_width in (one["sizes"] for one in adapters))
        if count > held + SLACK:
            raise misfit(f"its adapters have {count:,} numbers")
        for adapter in adapters:
            rank, width, made_width = adapter["sizes"]
            weight = own.get(adapter["weight"])
            shape = (made_width, width)
            if adapter["transposed"]:
                shape = (width, made_width)
            if weight is None or tuple(weight.shape) != shape:
                raise misfit(f"an adapter is of {adapter['weight'][:80]}, which is no weight of its sizes")
            tensors[adapter["a"]] = torch.full((rank, width), torch.nan, dtype=torch.float64)
            tensors[adapter["b"]] = torch.full((made_width, rank), torch.nan, dtype=torch.float64)
        return cls(model, own | tensors, adapters)

    def finished(self) -> nn.Module:
        """Return the model, with adapters added to its weights."""
        weights = dict(self.model.named_parameters(remove_duplicate=False))
        for adapter in self.adapters:
            added = adapter["scale"] * (self.tensors[adapter["b"]].double() @ self.tensors[adapter["a"]].double())
            weight = weights[adapter["weight"]]
            weight.data += (added.T if adapter["transposed"] else added).to(weight.dtype)
        self.adapters = []
        return self.model


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_buffers()) | dict(model.named_parameters(remove_duplicate=False))


def rebuilt(sim: AdaptiveSimulator, described: str) -> Target:
    """Return the auxiliary as it was before any update, in the simulator's dtype.

    described: what `describe_model` made of it. Raises `ModelError` if the simulator does not hold all of it, or
    transformers has no such model, and `ArtefactError` for a description that is damaged.
    """
    entries = entries_of(described)
    numbers = held_numbers(sim)
    if absent := absent_layers(entries["config"], lambda: (one.source for one in sim.program.parameters.values())):
        key, most, held = absent
        raise misfit(f"it has {key} {most:,}, and the simulator holds layers up to {held:,}")
    model: Any = _empty(entries, numbers)
    target = Target.described(model, sim, entries, numbers)
    with torch.no_grad():
        for parameter, stored in kept_tensors(sim):
            try:
                _restore(parameter, stored.cpu(), entries["sums"].get(parameter.source), target.tensors)
            except (RuntimeError, IndexError) as error:
                raise misfit(f"the simulator's {parameter.source} is of another shape") from error
    matrices = [(name, target.tensors[name]) for adapter in target.adapters for name in (adapter["a"], adapter["b"])]
    held = (*model.named_parameters(), *matrices)
    missing = [name for name, tensor in held if bool(tensor.isnan().any())]
    if missing:
        more = ""
        if len(missing) > SHOWN:
            more = f" and {len(missing) - SHOWN} more"
        raise ModelError(
            f"The simulator does not hold {', '.join(missing[:SHOWN])}{more} of its auxiliary, which the logits do not "
            "need or a rule has made numbers of; pass the auxiliary, or its folder, with model=."
        )
    model.to(sim.dtype).eval()
    return target


def _empty(entries: dict[str, Any], held: int) -> PreTrainedModel:
    """Return the model of a description, its parameters NaN in float64, so that what is not written shows.

    held: the numbers that the simulator has, of which a larger model is not made.
    """
    kind = getattr(transformers, entries["class"], None)
    config = dict(entries["config"])
    model_type = config.pop("model_type", None)
    known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel) and known):
        raise ModelError(
            f"transformers has no {entries['class'][:80]}, which the simulator was compiled from; pass it with model=."
        )
    check_sizes(DESCRIPTION_FILE, config)
    try:
        with init_empty_weights(include_buffers=False):
            model: Any = kind._from_config(CONFIG_MAPPING[model_type].from_dict(config))
        if entries["generation"] is not None:
            model.generation_config = GenerationConfig.from_dict(entries["generation"])
    except Exception as error:  # of transformers, which stumbles over settings that no model has
        raise misfit(first_line(error)[:200]) from error
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > held + SLACK:
        raise misfit(f"it describes {count:,} parameters, and the simulator holds {held:,}")
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                unknown = torch.full(parameter.shape, torch.nan, dtype=torch.float64)
                module._parameters[name] = nn.Parameter(unknown, requires_grad=False)
    model.tie_weights()
    return model


def kept_tensors(sim: AdaptiveSimulator) -> Iterator[tuple[Parameter, Tensor]]:
    """Yield every tensor that the simulator keeps of its auxiliary, with the parameter that says where it is from."""
    parameters = sim.program.parameters
    for group in (sim.tables, sim.score_vectors):
        for name, table in group.named_parameters():
            if name in parameters:
                yield parameters[name], table.detach()
    for layer, (kind, weights) in weights_by_layer(sim).items():
        for part, stored in ((main_part(kind), weights.weight), ("bias", weights.bias)):
            parameter = parameters.get(f"{layer}.{part}")
            if stored is not None and parameter is not None:
                yield parameter, stored.detach().reshape(-1, *parameter.shape)[0]


def held_numbers(sim: AdaptiveSimulator) -> int:
    """Return how many numbers the simulator keeps of its auxiliary."""
    return sum(stored.numel() for _, stored in kept_tensors(sim))


def _restore(parameter: Parameter, stored: Tensor, made: dict[str, Any] | None, tensors: dict[str, Tensor]) -> None:
    """Write a stored tensor to where it came from. made: the parameter that it is a sum of, and what was added."""
    if made is not None and made["of"] in tensors:
        tensor = tensors[made["of"]]
        tensor.copy_((stored.double() - made["plus"]).reshape(tensor.shape))
    elif made is None and parameter.source in tensors:
        _write(parameter, stored, tensors[parameter.source])


def _write(parameter: Parameter, stored: Tensor, tensor: Tensor) -> None:
    """Write a parameter's rows into the tensor that it is a view of."""
    for _, rows, own in viewed_rows(parameter, tensor):
        part = stored[:, own] if parameter.stacked else stored[own]
        rows.copy_(part.reshape(rows.shape))
