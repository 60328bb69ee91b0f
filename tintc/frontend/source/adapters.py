"""Adapters of peft: put on their base from a folder, merged into it, or kept as layers of their own."""

from __future__ import annotations

import copy
import sys
import warnings
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tintc.errors import ModelError

INCOMPLETE = "missing adapter keys"
"""Words of peft's warning about an adapter without some of the weights that its configuration asks for."""


def check_peft(name: str) -> None:
    """Raise `ModelError` if peft is not installed."""
    if find_spec("peft") is None:
        raise ModelError(
            f"{name} is an adapter, and reading it needs the package peft: pip install peft, or pass a folder with the "
            "merged model."
        )


def with_adapter(base: PreTrainedModel, name: str, folder: str) -> nn.Module:
    """Return a `PeftModel` of the base, in float32 or better, and the adapter in a folder.

    What is added to a weight would be lost in the rounding of a shorter type. Raises `ModelError` if the adapter cannot
    be read or is not one for this base.
    """
    decoder: Any = base
    wide = decoder.to(torch.promote_types(torch.float32, base.dtype))
    try:
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            model = import_module("peft").PeftModel.from_pretrained(wide, folder)
    except Exception as error:  # of peft, safetensors or torch
        why = " ".join(str(error).split())
        raise ModelError(f"The adapter {name} cannot be put on its base ({type(error).__name__}): {why}") from error
    for warning in noted:
        if INCOMPLETE in str(warning.message):
            raise ModelError(f"The adapter {name} lacks weights that its {folder}/adapter_config.json asks for.")
    return model.eval()


def is_adapted(model: Any) -> bool:
    """Return True for a `PeftModel`."""
    if "peft" not in sys.modules:  # whose import takes a second
        return False
    return isinstance(model, import_module("peft").PeftModel)


def resolved(model: Any, name: str, keep: bool, own: bool) -> nn.Module:
    """Return the decoder of a `PeftModel`: with the adapters as layers of it, or with them merged into its weights.

    own: whether nobody else has the model, so that it may be changed; otherwise the merged one is a copy. Raises
    `ModelError` for adapters that are no change of weights, such as prompts.
    """
    if keep:
        return _with_layers(model, name)
    if not hasattr(model.base_model, "merge_and_unload"):
        raise ModelError(_unmergeable(model, name))
    if not own:
        model = copy.deepcopy(model)
    try:
        return model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise ModelError(f"The adapters of {name} cannot be merged into its weights: {why}.") from error


def _with_layers(model: Any, name: str) -> nn.Module:
    """Return the decoder whose layers are those of the adapters, without the rest of what peft wraps it in."""
    if model.active_peft_config.is_prompt_learning:
        raise ModelError(_unmergeable(model, name))
    return model.get_base_model()


def _unmergeable(model: Any, name: str) -> str:
    kind = getattr(model.active_peft_config.peft_type, "value", "unknown")
    return (
        f"{name} is an adapter of the kind {kind}, which changes what the model reads and not its weights, so it is no "
        "part of a decoder; pass the model without it."
    )


@dataclass(frozen=True)
class Adapter:
    """An adapter ``scale B A`` of a weight, by the names of all three. sizes: rank, width of what it reads and of what
    it makes; transposed: whether the weight is stored ``[in, out]``."""

    weight: str
    a: str
    b: str
    sizes: tuple[int, int, int]
    scale: float
    transposed: bool


def kept_adapters(model: nn.Module) -> tuple[list[Adapter], list[tuple[str, str]]] | None:
    """Return the adapters of a model that has them as layers, and where what lies inside these layers is in the model
    without: beginnings of names, there and here. None if one is more than a product of two matrices that is added to a
    linear layer's weight.
    """
    tuners = import_module("peft.tuners")
    layer_of_peft = import_module("peft.tuners.tuners_utils").BaseTunerLayer
    copy_of_peft = import_module("peft.utils.other").ModulesToSaveWrapper
    adapters: list[Adapter] = []
    places: list[tuple[str, str]] = []
    modules: list[tuple[str, Any]] = list(model.named_modules())
    for path, module in modules:
        if isinstance(module, copy_of_peft):
            places += [(f"{path}.modules_to_save.{name}.", f"{path}.") for name in module.active_adapters]
        elif isinstance(module, tuners.lora.Linear) and _is_plain(module):
            places.append((f"{path}.base_layer.", f"{path}."))
            adapters += [
                Adapter(
                    f"{path}.weight",
                    f"{path}.lora_A.{name}.weight",
                    f"{path}.lora_B.{name}.weight",
                    (*module.lora_A[name].weight.shape, len(module.lora_B[name].weight)),
                    float(module.scaling[name]),
                    bool(module.fan_in_fan_out),
                )
                for name in module.active_adapters
                if name in module.lora_A
            ]
        elif isinstance(module, layer_of_peft):
            return None
    return adapters, places


def _is_plain(layer: Any) -> bool:
    """Return True if the adapters of a layer are two matrices each, and nothing more."""
    biased = any(layer.lora_bias.get(name) for name in layer.active_adapters)
    return not (biased or layer.lora_variant or layer.merged or layer.lora_embedding_A)


def adapter_parameters(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that are adapters' own."""
    if "peft" not in sys.modules:
        return frozenset()
    layer_of_peft = import_module("peft.tuners.tuners_utils").BaseTunerLayer
    names: set[str] = set()
    modules: list[tuple[str, Any]] = list(model.named_modules())
    for path, module in modules:
        if isinstance(module, layer_of_peft):
            own = set(module.adapter_layer_names)
            names.update(f"{path}.{key}" for key, _ in module.named_parameters() if key.split(".")[0] in own)
    return frozenset(names)
