"""`export_model`: a state's weights put back into the auxiliary, as an ordinary Hugging Face model.

The simulator's program says which tensor of the auxiliary's checkpoint each of its parameters is a view of, and how:
transposed, certain rows. Updated weights go back the same way. Everything else is the auxiliary's own.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tintc.errors import ArtefactError, ModelError
from tintc.frontend.load import load_auxiliary
from tintc.ir.core import Parameter
from tintc.runtime.artefact import write_tokenizer, writing
from tintc.runtime.fused.continuation import base_weights
from tintc.runtime.state import AdaptedState

if TYPE_CHECKING:
    from tintc.runtime.model import TintForCausalLM

CONSTANT = "constant."
"""Begins the names of tensors that the importer has computed."""


def export_model(state: AdaptedState, path: str | os.PathLike[str], model: Any = None) -> None:
    """Write the auxiliary with the weights of a state of one example; errors as of `AdaptedState.export`."""
    sim = state.sim
    if Path(path).exists():
        raise ArtefactError(f"{path} exists already; choose another folder.")
    state.check_current()
    found = auxiliary_of(sim, model)
    with torch.no_grad():
        _put_back(state, found)
    with writing(path, force=False) as folder:
        found.save_pretrained(folder)
        if sim.tokenizer is not None:
            write_tokenizer(copy.deepcopy(sim.tokenizer), folder)


def auxiliary_of(sim: TintForCausalLM, model: Any = None) -> PreTrainedModel:
    """A copy of the auxiliary, in the simulator's dtype, whose tensors may be written to; raises `ModelError` if it
    cannot be found."""
    name = str(sim.config.provenance.get("source", ""))
    if model is None and (not name or sim.config.provenance.get("format") == "memory"):
        raise ModelError("The simulator was compiled from a model in memory; pass it, or its folder, with model=.")
    try:
        source = load_auxiliary(name if model is None else model)
    except ModelError as error:
        if model is not None:
            raise
        raise ModelError(
            f"The model {name} that the simulator was compiled from cannot be found; pass its folder, file or id with "
            "model=."
        ) from error
    found = source.model
    if getattr(found.config, "quantization_config", None) is not None:  # of a GGUF file, whose weights are plain by now
        plain = found.config.to_dict()
        plain.pop("quantization_config")
        whole = AutoModelForCausalLM.from_config(type(found.config).from_dict(plain))
        whole.load_state_dict(found.state_dict())
        return whole.to(sim.dtype).eval()
    whole: Any = copy.deepcopy(found) if isinstance(model, torch.nn.Module) else found
    return whole.to("cpu", sim.dtype)


def _put_back(state: AdaptedState, model: PreTrainedModel) -> None:
    """Write every part that an update has changed into the tensor it is a view of."""
    sim = state.sim
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    written: dict[str, Tensor] = {}
    stored = base_weights(sim)
    for value, layer in sim.continuation.updated.items():
        names = ("weight" if value.type.kind == "linear" else "gain", "bias")
        new, old = state.weights[value], stored[value]
        for part, after, before in zip(names, (new.weight, new.bias), (old.weight, old.bias), strict=True):
            parameter = sim.program.parameters.get(f"{layer}.{part}")
            if after is None or before is None or parameter is None:
                continue
            after, before = (tensor.detach().cpu() for tensor in (after, before))
            if parameter.source.startswith(CONSTANT):
                if not torch.equal(after, before):
                    _add_to_origin(parameter, after, before, tensors)
            else:
                _put_rows(parameter, after, before, tensors, written, model)


def _put_rows(
    parameter: Parameter,
    after: Tensor,
    before: Tensor,
    tensors: dict[str, Tensor],
    written: dict[str, Tensor],
    model: PreTrainedModel,
) -> None:
    """Rows of a view into the tensor that is viewed; the simulator's stored ones must be there."""
    if parameter.source not in tensors:
        raise ModelError(f"{_name(model)} has no tensor {parameter.source}; pass the model that was compiled.")
    tensor = tensors[parameter.source].data
    tensor = tensor.transpose(0, 1) if parameter.transpose else tensor
    taken = written.setdefault(parameter.source, torch.zeros(tensor.shape[0], dtype=torch.bool))
    at = 0
    for start, stop in parameter.rows or ((0, tensor.shape[0]),):
        here, at = slice(at, at + stop - start), at + stop - start
        if start < 0:  # rows of zeros, which are not the checkpoint's
            continue
        rows = tensor[start:stop]
        if not torch.equal(rows, before[here].reshape(rows.shape).to(rows.dtype)):
            raise ModelError(
                f"{_name(model)} is not the model that the simulator was compiled from: its {parameter.source} is "
                "another. Pass that model with model=."
            )
        if bool(taken[start:stop].any()):
            raise ModelError(
                f"The tensor {parameter.source} is used in two places that were updated differently, so the state "
                "cannot be written as one model."
            )
        taken[start:stop] = True
        rows.copy_(after[here].reshape(rows.shape))


def _add_to_origin(parameter: Parameter, after: Tensor, before: Tensor, tensors: dict[str, Tensor]) -> None:
    """A gain that is its parameter and a number, such as ``1 + w``: the parameter takes the gain's change."""
    name = parameter.source.removeprefix(CONSTANT)
    name = name if name in tensors else name.rpartition(".")[0]
    origin = tensors.get(name)
    if origin is None or origin.numel() != before.numel():
        raise ModelError(f"The gain {name} is no parameter's, so its update has no place in the exported model.")
    apart = before.reshape(origin.shape) - origin.data
    rounding = 8 * torch.finfo(before.dtype).eps * float(before.abs().max())
    if float((apart - apart.flatten()[0]).abs().max()) > rounding:
        raise ModelError(f"The gain made of {name} is more than it and a number, so its update has no place there.")
    origin.data += (after - before).reshape(origin.shape)


def _name(model: PreTrainedModel) -> str:
    return Path(str(getattr(model.config, "name_or_path", ""))).name or type(model).__name__
