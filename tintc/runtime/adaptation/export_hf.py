"""`export_model`: a state's weights put back into the auxiliary, as an ordinary Hugging Face model.

The simulator's program says which tensor of the auxiliary's checkpoint each of its parameters is a view of, and how:
transposed, certain rows. Updated weights go back the same way, and so do those that were trained from outside.
Everything else is the auxiliary's own.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tintc.bounded import check_path
from tintc.errors import ArtefactError, ModelError
from tintc.frontend.source.load import ADAPTER_FATES, ADAPTERS, load_auxiliary
from tintc.frontend.source.wrappers import TEXT_PATH
from tintc.ir.auxiliary.interpreter import view, viewed_rows
from tintc.ir.core import Parameter
from tintc.ir.simulator.interface.fused_base import FusedWeights
from tintc.ir.simulator.shared.linear_common import main_part
from tintc.runtime.adaptation.continuation import AdaptiveSimulator, weights_by_layer
from tintc.runtime.adaptation.rebuilt import Target, rebuilt
from tintc.runtime.adaptation.state import AdaptedWeights
from tintc.runtime.artefact.folder import write_tokenizer, writing

STATE_DICT = "model.safetensors"
"""The file that a module outside transformers is exported to."""
CONSTANT = "constant."
"""Begins the names of tensors that the importer has computed."""


def export_model(state: AdaptedWeights, path: str | os.PathLike[str], model: Any = None) -> None:
    """Write the auxiliary with the weights of a state of one example; errors as of `AdaptedWeights.export`."""
    sim = state.sim
    check_path(path, ArtefactError)
    if Path(path).exists():
        raise ArtefactError(f"{path} exists already; choose another folder.")
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
        _put_back(sim, state, auxiliary)
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
    name = str(provenance.get("source", ""))
    described = sim.config.described
    keeps_adapters = provenance.get(ADAPTERS) == ADAPTER_FATES[True]
    if described is not None and (model is None or keeps_adapters):
        return rebuilt(sim, described)
    if keeps_adapters:
        raise ModelError(
            "The simulator keeps adapters as layers that are more than two matrices each, which cannot be added to a "
            "weight, so it is not exported; compile with the adapters merged."
        )
    if model is None and (not name or provenance.get("format") == "memory"):
        if part := provenance.get(TEXT_PATH):
            raise ModelError(
                f"The simulator holds {part}; no model of transformers is that decoder alone, so pass the whole model, "
                "or its folder, with model=."
            )
        raise ModelError("The simulator was compiled from a model in memory; pass it, or its folder, with model=.")
    if model is None and "/" not in name and not Path(name).exists():
        # A name without an owner is that of a folder, which the hub may have a stranger of.
        raise ModelError(
            f"The simulator was compiled from {name}, which is not in the current folder; pass its folder, file or id "
            "with model=."
        )
    chosen: Any = model
    if model is None:
        chosen = name
    try:
        source = load_auxiliary(chosen, with_tokenizer=False)
    except ModelError as error:
        if model is not None:
            raise
        raise ModelError(
            f"The model {name} that the simulator was compiled from cannot be found; pass its folder, file or id with "
            "model=."
        ) from error
    auxiliary: Any = source.model
    config: Any = getattr(auxiliary, "config", None)
    if getattr(config, "quantization_config", None) is not None:  # of a GGUF file, whose weights are plain by now
        entries = config.to_dict()
        entries.pop("quantization_config")
        plain = AutoModelForCausalLM.from_config(type(config).from_dict(entries))
        plain.load_state_dict(auxiliary.state_dict())
        return Target.of(plain.to(sim.dtype).eval(), sim)
    if isinstance(model, nn.Module):
        auxiliary = copy.deepcopy(auxiliary)
    return Target.of(auxiliary.to("cpu", sim.dtype), sim)


def put_back(state: AdaptedWeights, auxiliary: Target) -> None:
    """Write every part that is not the model's own: what the update has changed, and what training the simulator's
    prefixes has."""
    _put_back(state.sim, state, auxiliary)


def _put_back(sim: AdaptiveSimulator, state: AdaptedWeights | None, auxiliary: Target) -> None:
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
