"""`rebuilt`: the auxiliary, from nothing but its simulator: its configuration, and the tensors that are kept of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tintc.bounded import UnfitFileError, parse_json
from tintc.errors import ArtefactError, ModelError
from tintc.frontend.source.bounds import check_sizes
from tintc.ir.auxiliary.interpreter import viewed_rows
from tintc.ir.core import Parameter
from tintc.ir.simulator.shared.linear_common import main_part
from tintc.runtime.adaptation.continuation import AdaptiveSimulator, weights_by_layer
from tintc.runtime.artefact.folder import first_line
from tintc.runtime.artefact.names import DESCRIPTION_FILE
from tintc.runtime.artefact.schema import is_number

SLACK = 1 << 22
"""Numbers that a model may have and the simulator not, so that what is missing can be named."""
SHOWN = 3
"""Tensors named in a message before "and n more"."""


def rebuilt(sim: AdaptiveSimulator, described: str) -> PreTrainedModel:
    """Return the auxiliary as it was before any update, in the simulator's dtype.

    described: what `describe_model` made of it. Raises `ModelError` if the simulator does not hold all of it, or
    transformers has no such model, and `ArtefactError` for a description that is damaged.
    """
    entries = _entries(described)
    held = sum(stored.numel() for _, stored in kept_tensors(sim))
    model: Any = _empty(entries, held)
    tensors: dict[str, Tensor] = {}
    for name, tensor in (*model.named_buffers(), *model.named_parameters(remove_duplicate=False)):
        tensors[name] = tensor.data
    with torch.no_grad():
        for parameter, stored in kept_tensors(sim):
            made = entries["sums"].get(parameter.source)
            target = tensors.get(parameter.source if made is None else made["of"])
            if target is None:
                continue
            try:
                if made is not None:
                    target.copy_((stored.double() - made["plus"]).reshape(target.shape))
                else:
                    _write(parameter, stored, target)
            except (RuntimeError, IndexError) as error:
                raise _misfit(f"the simulator's {parameter.source} is of another shape") from error
    missing = [name for name, parameter in model.named_parameters() if bool(parameter.isnan().any())]
    if missing:
        more = ""
        if len(missing) > SHOWN:
            more = f" and {len(missing) - SHOWN} more"
        raise ModelError(
            f"The simulator does not hold {', '.join(missing[:SHOWN])}{more} of its auxiliary, which the logits do not "
            "need or a rule has made numbers of; pass the auxiliary, or its folder, with model=."
        )
    return model.to(sim.dtype).eval()


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
    return entries


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
