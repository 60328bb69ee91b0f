"""`rebuilt`: the auxiliary, from nothing but its simulator: its configuration, and the tensors that are kept of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tintc.bounded import UnfitFileError, parse_json
from tintc.errors import ArtefactError, ModelError
from tintc.frontend.alone import renamed
from tintc.frontend.source.bounds import check_sizes
from tintc.ir.auxiliary.interpreter import viewed_rows
from tintc.ir.core import Parameter
from tintc.ir.simulator.shared.linear_common import main_part
from tintc.runtime.adaptation.continuation import AdaptiveSimulator, weights_by_layer
from tintc.runtime.artefact.folder import first_line
from tintc.runtime.artefact.names import DESCRIPTION_FILE
from tintc.runtime.artefact.schema import is_number, is_size

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
        own = dict(model.named_buffers()) | dict(model.named_parameters(remove_duplicate=False))
        entries: dict[str, Any] = {}
        if sim.config.described is not None:
            with suppress(ArtefactError):  # a model that was passed needs none
                entries = _entries(sim.config.described)
        if type(model).__name__ != entries.get("class"):
            return cls(model, own)
        made = {entry["of"] for entry in entries["sums"].values()}
        sources = {parameter.source for parameter in sim.program.parameters.values()} | made
        places = [(before, after) for before, after in entries.get("places", [])]
        tensors = {source: own[name] for source in sources if (name := renamed(source, places)) in own}
        adapters = entries.get("adapters", [])
        for adapter in adapters:
            rank, width, made_width = adapter["sizes"]
            if max(rank * width, rank * made_width) > SLACK + sum(tensor.numel() for tensor in own.values()):
                raise _misfit("it describes adapters larger than its model")
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


def rebuilt(sim: AdaptiveSimulator, described: str) -> Target:
    """Return the auxiliary as it was before any update, in the simulator's dtype.

    described: what `describe_model` made of it. Raises `ModelError` if the simulator does not hold all of it, or
    transformers has no such model, and `ArtefactError` for a description that is damaged.
    """
    entries = _entries(described)
    model: Any = _empty(entries, sum(stored.numel() for _, stored in kept_tensors(sim)))
    target = Target.of(model, sim)
    tensors = target.tensors
    with torch.no_grad():
        for parameter, stored in kept_tensors(sim):
            made = entries["sums"].get(parameter.source)
            written = tensors.get(parameter.source if made is None else made["of"])
            if written is None:
                continue
            try:
                if made is not None:
                    written.copy_((stored.double() - made["plus"]).reshape(written.shape))
                else:
                    _write(parameter, stored, written)
            except (RuntimeError, IndexError) as error:
                raise _misfit(f"the simulator's {parameter.source} is of another shape") from error
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


def _entries(described: str) -> dict[str, Any]:
    """Return what a description says; raise `ArtefactError` unless it is one."""
    try:
        entries = parse_json(described.encode("utf-8", "replace"))
    except UnfitFileError as error:
        raise _misfit(str(error)) from error
    rules: dict[str, Callable[[Any], bool]] = {
        "class": lambda value: isinstance(value, str),
        "config": lambda value: isinstance(value, dict),
        "generation": lambda value: value is None or isinstance(value, dict),
        "sums": lambda value: isinstance(value, dict) and all(map(_is_sum, value.values())),
    }
    for name, fits in rules.items():
        if not isinstance(entries, dict) or name not in entries or not fits(entries[name]):
            raise _misfit(f"it has no {name} of a model")
    for name, fits in (("places", _is_place), ("adapters", _is_adapter)):
        several = entries.get(name, [])
        if not isinstance(several, list) or not all(map(fits, several)):
            raise _misfit(f"it has no {name} of a model")
    return entries


def _is_place(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(one, str) for one in value)


def _is_adapter(value: Any) -> bool:
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in ("a", "b", "weight")):
        return False
    sizes = value.get("sizes")
    counted = isinstance(sizes, list) and len(sizes) == 3 and all(map(is_size, sizes))
    return counted and is_number(value.get("scale")) and isinstance(value.get("transposed"), bool)


def _is_sum(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("of"), str) and is_number(value.get("plus"))


def _misfit(why: str) -> ArtefactError:
    return ArtefactError(
        f"What the simulator keeps of its auxiliary ({DESCRIPTION_FILE}) is damaged: {why}. Pass the auxiliary, or its "
        "folder, with model=."
    )


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
        raise _misfit(first_line(error)[:200]) from error
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > held + SLACK:
        raise _misfit(f"it describes {count:,} parameters, and the simulator holds {held:,}")
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
                yield parameters[name], table.detach().cpu()
    for layer, (kind, weights) in weights_by_layer(sim).items():
        for part, stored in ((main_part(kind), weights.weight), ("bias", weights.bias)):
            parameter = parameters.get(f"{layer}.{part}")
            if stored is not None and parameter is not None:
                yield parameter, stored.detach().cpu().reshape(-1, *parameter.shape)[0]


def _write(parameter: Parameter, stored: Tensor, tensor: Tensor) -> None:
    """Write a parameter's rows into the tensor that it is a view of."""
    for _, rows, own in viewed_rows(parameter, tensor):
        part = stored[:, own] if parameter.stacked else stored[own]
        rows.copy_(part.reshape(rows.shape))
