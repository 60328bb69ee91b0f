"""Kinds of things that users pass in place of a decoder, and the sentences that say what to pass instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tintc.errors import ModelError
from tintc.frontend.graph.calling import needed_besides
from tintc.hub import MODEL_TYPE

PACKED = frozenset({"qweight", "qzeros", "weight_packed"})
"""Names of buffers that hold quantised weights."""
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model in `DataParallel`, `DistributedDataParallel` and `torch.compile`, however they are nested."""
    while True:
        if isinstance(model, WRAPPERS):
            model = model.module
        elif isinstance(model, torch._dynamo.OptimizedModule):
            model = model._orig_mod
        else:
            return model


def check_kind(model: nn.Module, name: str, adapters: bool = False) -> nn.Module:
    """Return the model if it is a decoder with a language-model head, or a module outside transformers, which may be
    one; raise `ModelError` with its kind if it is not.

    adapters: whether layers of peft are a part of it.
    """
    if isinstance(model, PreTrainedModel) and model.config.model_type == MODEL_TYPE:
        raise ModelError(simulator_sentence(name))
    if not adapters and any(_package(module) == "peft" for module in model.modules()):
        raise ModelError(
            f"{name} has layers of peft outside of a PeftModel; pass the PeftModel (PeftModel.from_pretrained(model, "
            "adapter) makes one), or what its merge_and_unload() returns."
        )
    if quantised(model):
        raise ModelError(quantised_sentence(name, _method(model)))
    if next(model.parameters(), None) is None:
        raise ModelError(f"{name} has no weights; pass a module that makes logits of token ids.")
    if not is_registered(model):
        return model
    assert isinstance(model, PreTrainedModel)
    if model.config.is_encoder_decoder:
        raise ModelError(f"{name} reads its prompt with an encoder; tintc compiles causal language models (decoders).")
    if not model.can_generate():
        raise ModelError(_headless(model, name))
    if needed := needed_besides(model):
        raise ModelError(f"{name} does not run on token ids alone: its forward needs {' and '.join(needed)} too.")
    return model


def held_model(model: nn.Module) -> tuple[str, PreTrainedModel] | None:
    """Return the transformers decoder that a module holds, with the attribute where it does; None if it holds none."""
    for place, part in model.named_modules():
        if place and isinstance(part, PreTrainedModel) and part.can_generate():
            return place, part
    return None


def is_registered(model: nn.Module) -> bool:
    """Return True for a decoder in transformers' own terms, whose forward takes masks and whose configuration has
    sizes; False for a module of anybody else's, which is known by what it does."""
    own = type(model).__module__.partition(".")[0] == "transformers"
    return isinstance(model, PreTrainedModel) and (own or model.can_generate())


def _headless(model: PreTrainedModel, name: str) -> str:
    """Return why a model that cannot generate is none to compile."""
    whole = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model.config.model_type)
    if model.get_output_embeddings() is None and whole is not None:
        return (
            f"{name} is not a causal language model: it has no language-model head. Pass {whole}, which is what "
            "AutoModelForCausalLM.from_pretrained loads."
        )
    return (
        f"{name} is not a causal language model (decoder with a language-model head); if it is a part of one, pass the "
        "whole model."
    )


def quantised(model: nn.Module) -> bool:
    """Return True if some weights are kept in another form than as numbers of two bytes or more."""
    for module in model.modules():
        if _package(module) == "torch.ao" or PACKED.intersection(module._buffers):
            return True
        parameters = [parameter for parameter in module._parameters.values() if parameter is not None]
        if any(not _is_plain(parameter) for parameter in parameters):
            return True
    return False


def quantised_sentence(name: str, method: str) -> str:
    """Return why a quantised model is not compiled, and what to do."""
    by = f" by {method}" if method else ""
    return (
        f"{name} has weights that are quantised{by}; pass the model from before, or load it with transformers, call "
        "model.dequantize() and pass the model."
    )


def simulator_sentence(name: str) -> str:
    """Return why a simulator is not compiled, and what to do."""
    return f"{name} is a simulator already; pass the model that it was compiled from, or use it as it is."


def _is_plain(parameter: Tensor) -> bool:
    own = type(parameter).__module__.partition(".")[0] != "torchao"
    return own and parameter.is_floating_point() and parameter.dtype.itemsize > 1


def _method(model: Any) -> str:
    """Return the method that the configuration says the model is quantised by; empty if it names none."""
    return method_of(getattr(getattr(model, "config", None), "quantization_config", None))


def method_of(entry: Any) -> str:
    """Return the method that an entry `quantization_config` names, a mapping or an object; empty if there is none."""
    if entry is None:
        return ""
    method = getattr(entry, "quant_method", "")
    if isinstance(entry, dict):
        method = entry.get("quant_method", "")
    return str(getattr(method, "value", method))


def _package(module: nn.Module) -> str:
    """Return the package of a module's class; of PyTorch's, with the package inside, as ``torch.nn``."""
    package, *inner = type(module).__module__.split(".")
    if package == "torch" and inner:
        return f"torch.{inner[0]}"
    return package


def not_a_model(value: Any) -> str:
    """Return what to pass instead of something that is neither a module nor a path."""
    if isinstance(value, PretrainedConfig):
        return (
            f"{type(value).__name__} is a configuration, which has no weights; pass a model, such as "
            "AutoModelForCausalLM.from_config(config) makes with random weights."
        )
    return f"A {type(value).__name__} is no model; pass a transformers model, a folder, a .gguf file or a hub id."
