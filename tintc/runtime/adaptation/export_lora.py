"""`export_lora`: what a state has learnt, as an adapter in PEFT's format.

The change of a linear layer's weight is ``B A``, by its singular values. That of its bias goes into the adapter's own
where every layer of it has a bias; PEFT cannot merge such a bias into a layer without, so that otherwise biases are
written as they have become. Norms are written whole. A gain ``1 + w`` is written as its parameter w.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tintc.errors import ModelError, OptionError
from tintc.runtime.adaptation.export_hf import auxiliary_of
from tintc.runtime.adaptation.put_back import put_back
from tintc.runtime.adaptation.state import AdaptedWeights
from tintc.runtime.artefact.folder_writer import check_new, writing

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
WRAPPED = "base_model.model."
"""Begins the names of all modules in a `PeftModel`."""
ROUNDINGS = 4
"""How many roundings of an entry may look like a change."""


@dataclass(frozen=True)
class ExportedAdapter:
    """What an adapter is of the update. rank: of every layer; full_rank: the least that is exact, up to rounding;
    errors: by layer, what is left out of its weight's change, relative to it (Frobenius norm); error: of all layers
    together."""

    rank: int
    full_rank: int
    error: float
    errors: dict[str, float]


@dataclass(frozen=True)
class _Change:
    """One linear layer's change: of its weight ``[dout, din]``, by singular values, the larger ones first, of which
    `exact` are more than rounding; bias: before and after, if it has changed."""

    left: Tensor
    values: Tensor
    right: Tensor
    exact: int
    bias: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, before: Tensor, after: Tensor, bias: tuple[Tensor, Tensor] | None) -> _Change:
        left, values, right = torch.linalg.svd(after.double() - before.double(), full_matrices=False)
        # Some roundings of every entry are a matrix of noise, whose largest singular value is about this.
        eps = min(torch.finfo(after.dtype).eps, torch.finfo(torch.float32).eps)
        noise = ROUNDINGS * eps * float(after.double().square().mean().sqrt()) * sum(size**0.5 for size in after.shape)
        return cls(left, values, right, int((values > noise).sum()), bias)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return A ``[rank, din]`` and B ``[dout, rank]``; rows and columns that are not needed are zero."""
        kept = min(rank, self.exact)
        roots = self.values[:kept].sqrt()
        a = self.right.new_zeros(rank, self.right.shape[1])
        b = self.left.new_zeros(self.left.shape[0], rank)
        a[:kept] = roots[:, None] * self.right[:kept]
        b[:, :kept] = self.left[:, :kept] * roots
        return a, b

    def squared(self, rank: int) -> tuple[float, float]:
        """Return the squared norm of what a rank leaves out, beyond rounding, and that of the change."""
        squares = self.values.square()
        return float(squares[rank : self.exact].sum()), float(squares.sum())


def check_kind(kind: object, rank: object) -> None:
    """Raise `OptionError` unless a state can be exported as that."""
    if kind not in ("model", "lora"):
        raise OptionError(f"The kind of export is {kind!r}; choose model or lora.")
    if rank is None:
        return
    if kind == "model":
        raise OptionError("A model has no rank; leave it out, or export with kind='lora'.")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise OptionError(f"The rank is {rank!r}; it must be a whole number, at least 1.")


def export_lora(
    state: AdaptedWeights, path: str | os.PathLike[str], rank: int | None = None, model: Any = None
) -> ExportedAdapter:
    """Write the adapter of a state of one example; errors as of `AdaptedState.export`."""
    sim = state.sim
    check_new(path)
    state.check_current()
    stored = auxiliary_of(sim, model)
    updated = copy.deepcopy(stored)
    with torch.no_grad():
        put_back(sim, state, updated)
        before = stored.finished()
        after = updated.finished()
        changed = _changed(before, after)
        linear = {name: change for name in changed if (change := _linear_change(before, after, name)) is not None}
    norms = [name for name in changed if name not in linear]
    if not any(change.exact for change in linear.values()):
        raise OptionError("The state has changed no linear layer's weight, so there is no adapter to be made of it.")
    full = max(change.exact for change in linear.values())
    rank = min(rank or full, full)
    tensors, biases = _linear_tensors(before, linear, rank)
    for name in norms:
        own = after.get_submodule(name).state_dict()
        tensors |= {f"{WRAPPED}{name}.{part}": tensor for part, tensor in own.items()}
    config = _configuration(before, sorted(linear), norms, rank, _base_name(state, before, model))
    with writing(path, force=False) as folder:
        plain = {name: tensor.to(sim.dtype).contiguous().clone() for name, tensor in tensors.items()}
        save_file(plain, folder / WEIGHTS, {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config | biases, indent=2) + "\n", encoding="utf-8")
    return _measured(linear, rank, full)


def _configuration(
    base: nn.Module, linear: Sequence[str], norms: Sequence[str], rank: int, base_name: str | None
) -> dict[str, Any]:
    """Return peft's configuration of an adapter of these layers."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if isinstance(base, PreTrainedModel) else None,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": [*linear],
        "modules_to_save": [*norms] or None,
        "fan_in_fan_out": all(isinstance(base.get_submodule(name), Conv1D) for name in linear),
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }


def _changed(before: nn.Module, after: nn.Module) -> list[str]:
    """Return the modules that own a parameter which has changed, under each of their names."""
    held = dict(before.named_parameters(remove_duplicate=False))
    owners: dict[str, None] = {}
    for name, parameter in after.named_parameters(remove_duplicate=False):
        if not torch.equal(parameter, held[name]):
            owners[name.rpartition(".")[0]] = None
    _check_shared(after, owners)
    return list(owners)


def _check_shared(model: nn.Module, owners: Mapping[str, None]) -> None:
    """Raise `ModelError` for a module in two places: PEFT exchanges it in the first of them alone."""
    parents: dict[int, nn.Module] = {}
    for name in owners:
        module = model.get_submodule(name)
        parent = model.get_submodule(name.rpartition(".")[0])
        if parents.setdefault(id(module), parent) is not parent:
            raise ModelError(f"{name} is a module in two places, which an adapter cannot change; export the model.")


def _linear_change(before: nn.Module, after: nn.Module, name: str) -> _Change | None:
    """Return a linear layer's change, None for a norm's; raise `ModelError` for what an adapter cannot change."""
    old: Any = before.get_submodule(name)
    new: Any = after.get_submodule(name)
    if isinstance(old, nn.Linear | Conv1D):
        weights = [one.weight.detach() for one in (old, new)]
        if isinstance(old, Conv1D):
            weights = [weight.T for weight in weights]
        bias = None
        if old.bias is not None and not torch.equal(old.bias, new.bias):
            bias = old.bias.detach(), new.bias.detach()
        return _Change.of(weights[0], weights[1], bias)
    for part, parameter in old.named_parameters(recurse=False):
        if parameter.dim() > 1:
            raise ModelError(
                f"{name}.{part} is no linear layer's weight (a stack of experts, for one), and an adapter changes "
                "these alone; export with kind='model', or compile with a --descend that leaves it out."
            )
    return None


def _linear_tensors(
    model: nn.Module, linear: Mapping[str, _Change], rank: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of linear layers, and what the configuration says of their biases."""
    tensors: dict[str, Tensor] = {}
    moved = [name for name, change in linear.items() if change.bias is not None]
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in linear}
    own = all(layer.bias is not None for layer in layers.values())
    for name, change in linear.items():
        place = f"{WRAPPED}{name}"
        tensors[f"{place}.lora_A.weight"], tensors[f"{place}.lora_B.weight"] = change.factors(rank)
        if not moved:
            continue
        if own:
            old, new = change.bias or (layers[name].bias,) * 2
            tensors[f"{place}.lora_B.bias"] = new.double() - old.double()
        elif change.bias is not None:
            tensors[f"{place}.base_layer.bias"] = change.bias[1]
    if not moved:
        return tensors, {"bias": "none", "lora_bias": False}
    if own:
        return tensors, {"bias": "none", "lora_bias": True}
    return tensors, {"bias": "all", "lora_bias": False}


def _base_name(state: AdaptedWeights, auxiliary: Any, model: Any) -> str | None:
    """Return where the base model is, as far as it is known."""
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    known: Iterator[Any] = iter((getattr(auxiliary, "name_or_path", None), state.sim.config.provenance.get("source")))
    return next((str(name) for name in known if name), None)


def _measured(linear: Mapping[str, _Change], rank: int, full: int) -> ExportedAdapter:
    """Return what is said of the adapter."""
    errors: dict[str, float] = {}
    left = whole = 0.0
    for name, change in linear.items():
        out, all_of_it = change.squared(rank)
        left += out
        whole += all_of_it
        errors[name] = (out / all_of_it) ** 0.5 if all_of_it else 0.0
    return ExportedAdapter(rank, full, (left / whole) ** 0.5, errors)
