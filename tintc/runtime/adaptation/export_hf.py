"""`export_model`: the auxiliary with a state's weights, as an ordinary Hugging Face model."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tintc.errors import ModelError
from tintc.frontend.source.load import load_auxiliary
from tintc.frontend.source.provenance import ADAPTER_FATES, ADAPTERS
from tintc.frontend.source.wrappers import TEXT_PATH
from tintc.runtime.adaptation.continuation import AdaptiveSimulator
from tintc.runtime.adaptation.put_back import put_back
from tintc.runtime.adaptation.rebuilt import Target, rebuilt
from tintc.runtime.adaptation.state import AdaptedWeights
from tintc.runtime.artefact.folder_writer import check_new, write_tokenizer, writing

STATE_DICT = "model.safetensors"
"""The file that a module outside transformers is exported to."""


def export_model(state: AdaptedWeights, path: str | os.PathLike[str], model: Any = None) -> None:
    """Write the auxiliary with the weights of a state of one example; errors as of `AdaptedWeights.export`."""
    sim = state.sim
    check_new(path)
    auxiliary = model_of(sim, state, model)
    with writing(path, force=False) as folder:
        _save(auxiliary, folder)
        if sim.tokenizer is not None:
            write_tokenizer(copy.deepcopy(sim.tokenizer), folder)


def model_of(sim: AdaptiveSimulator, state: AdaptedWeights | None, model: Any = None) -> nn.Module:
    """Return the auxiliary with the weights of a state of one example, or without any update.

    model: as of `auxiliary_of`, and errors too; `OptionError` if the simulator's stored weights have changed since the
    state was made.
    """
    if state is not None:
        state.check_current()
    auxiliary = auxiliary_of(sim, model)
    with torch.no_grad():
        put_back(sim, state, auxiliary)
        return auxiliary.finished()


def _save(model: nn.Module, folder: Path) -> None:
    """Write a model: as transformers does, or, for a module that is none of its, as a state dict that
    `load_state_dict` takes, tied weights under each of their names."""
    if isinstance(model, PreTrainedModel):
        model.save_pretrained(folder)
        return
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / STATE_DICT, {"format": "pt"})


def auxiliary_of(sim: AdaptiveSimulator, model: Any = None) -> Target:
    """Return a copy of the auxiliary, in the simulator's dtype, whose tensors may be written to.

    model: where to have it from, in place of what the simulator keeps of it; folders of earlier versions keep nothing,
    and name where it was. Adapters that are layers are the simulator's own in any case. Raises `ModelError` if it
    cannot be had.
    """
    provenance = sim.config.provenance
    described = sim.config.described
    keeps_adapters = provenance.get(ADAPTERS) == ADAPTER_FATES[True]
    if described is not None and (model is None or keeps_adapters):
        return rebuilt(sim, described)
    if keeps_adapters:
        raise ModelError(
            "The simulator keeps adapters as layers that are more than two matrices each, which cannot be added to a "
            "weight, so it is not exported; compile with the adapters merged."
        )
    if model is None:
        auxiliary = _loaded_from(provenance)
    else:
        auxiliary = load_auxiliary(model, with_tokenizer=False).model
    plain = _without_quantisation(auxiliary)
    if plain is not None:
        return Target.of(plain.to(sim.dtype).eval(), sim)
    if isinstance(model, nn.Module):
        auxiliary = copy.deepcopy(auxiliary)
    return Target.of(auxiliary.to("cpu", sim.dtype), sim)


def _loaded_from(provenance: dict[str, Any]) -> nn.Module:
    """Return the auxiliary from where it was when it was compiled; raise `ModelError` if that says no place to have it
    from, or it is not there."""
    name = str(provenance.get("source", ""))
    if not name or provenance.get("format") == "memory":
        if part := provenance.get(TEXT_PATH):
            raise ModelError(
                f"The simulator holds {part}; no model of transformers is that decoder alone, so pass the whole model, "
                "or its folder, with model=."
            )
        raise ModelError("The simulator was compiled from a model in memory; pass it, or its folder, with model=.")
    if "/" not in name and not Path(name).exists():
        # A name without an owner is that of a folder, which the hub may have a stranger of.
        raise ModelError(
            f"The simulator was compiled from {name}, which is not in the current folder; pass its folder, file or id "
            "with model=."
        )
    try:
        return load_auxiliary(name, with_tokenizer=False).model
    except ModelError as error:
        raise ModelError(
            f"The model {name} that the simulator was compiled from cannot be found; pass its folder, file or id with "
            "model=."
        ) from error


def _without_quantisation(auxiliary: nn.Module) -> nn.Module | None:
    """Return a model with the same weights whose configuration does not say that they are quantised; None if none
    says so."""
    config: Any = getattr(auxiliary, "config", None)
    if getattr(config, "quantization_config", None) is None:
        return None
    entries = config.to_dict()  # of a GGUF file, whose weights are plain by now
    entries.pop("quantization_config")
    plain = AutoModelForCausalLM.from_config(type(config).from_dict(entries))
    plain.load_state_dict(auxiliary.state_dict())
    return plain
