"""The model at a place: a folder, a GGUF file or a repository of the hub, with its adapter if it has one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, PreTrainedModel

from tintc.errors import ModelError
from tintc.frontend.source.adapters import check_peft, resolved, with_adapter
from tintc.frontend.source.bounds import check_files, check_parameters
from tintc.frontend.source.failures import check_report, why_not_loaded
from tintc.frontend.source.gguf_header import check_gguf
from tintc.frontend.source.kinds import method_of
from tintc.frontend.source.places import Place, configuration, has_weights, weight_files
from tintc.frontend.source.quantised import check_packages, dequantised, dequantising
from tintc.frontend.source.weightless import count_parameters, weightless_model
from tintc.frontend.source.wrappers import loader_of


def model_at(place: Place, values: bool, keep_adapters: bool) -> torch.nn.Module:
    """Return the model at a place, with its adapter if it has one.

    Raises `ModelError` for every failure of transformers, and for weights that would be left random.
    """
    method = method_of(configuration(place).get("quantization_config"))
    if place.gguf_file is not None:
        check_gguf(Path(place.folder) / place.gguf_file)
    weightless = not values and (bool(method) or not has_weights(place))
    if method and not weightless:
        check_packages(place.name, method)
    wants_adapter = place.adapter is not None and (values or keep_adapters)
    if wants_adapter:
        check_peft(place.name)
    base = _base(place, weightless)
    if method and not weightless:
        base = dequantised(base, place.name, method)
    if not wants_adapter or place.adapter is None:
        return base
    return resolved(with_adapter(base, place.name, place.adapter), place.name, keep_adapters, own=True)


def check_folders(place: Place) -> None:
    """Raise `ModelError` for files on this machine that are not to be opened or believed."""
    if place.gguf_file is None and place.local:
        check_files(place.folder, place.name)
    if place.adapter is not None:
        check_files(place.adapter, place.name)


def _base(place: Place, weightless: bool) -> PreTrainedModel:
    """Return the model at a place, with its weights or without, as transformers loads it."""
    try:
        make = _maker(place, weightless)
        try:
            loaded = make(attn_implementation="sdpa")
        except ValueError as error:
            if "attention" not in str(error):
                raise
            loaded = make(attn_implementation="eager")
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(why_not_loaded(place, error)) from error
    if weightless:
        return loaded
    model, report = loaded
    check_report(place.name, report, model)
    return model.eval()


def _maker(place: Place, weightless: bool) -> Callable[..., Any]:
    """Return the function that makes the model; if it loads weights, it returns a report with it."""
    config = AutoConfig.from_pretrained(place.folder, **place.options)
    if weightless:
        return partial(weightless_model, config, trust_remote_code=place.trusted)
    # Files that torch has pickled are read by its weights-only loader, which runs no code.
    options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True, "weights_only": True}
    options |= {"config": config, "dtype": "auto"}
    loader: Any = AutoModelForCausalLM
    files = weight_files(place)  # none yet of a model of the hub
    if files and getattr(config, "quantization_config", None) is None:
        check_parameters(place.name, count_parameters(config, place.trusted), files)
    if place.gguf_file:
        options |= {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    else:
        loader = loader_of(config)
        if getattr(config, "quantization_config", None) is not None:
            config.quantization_config = dequantising(config.quantization_config)
    return partial(loader.from_pretrained, place.folder, **place.options, **options)
