"""`decoder_alone`: the decoder of text in a wrapper, as transformers' model of text alone, if it has one."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from accelerate import init_empty_weights
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from tintc.frontend.graph.calling import text_config, text_decoder

Places = list[tuple[str, str]]
"""Beginnings of names in a captured model, and what stands for them in the model that is exported."""


@dataclass(frozen=True)
class Alone:
    """A decoder without its wrapper. model: of text alone, with the wrapper's own tensors; places: how these are called
    there."""

    model: PreTrainedModel
    places: Places


def decoder_alone(wrapper: PreTrainedModel) -> Alone | None:
    """Return the decoder of text inside a wrapper; None if transformers has no class of it alone, or that has other
    weights."""
    decoder = text_decoder(wrapper)
    config: Any = copy.deepcopy(text_config(wrapper))
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if decoder is None or not isinstance(kind, type):
        return None
    head: Any = wrapper.get_output_embeddings()
    table: Any = wrapper.get_input_embeddings()
    config.tie_word_embeddings = head is not None and head.weight is table.weight
    with init_empty_weights(include_buffers=False):
        model: Any = kind._from_config(config)
    places = [
        (f"{_path(wrapper, inner)}.", f"{_path(model, own)}.")
        for inner, own in ((decoder, model.get_decoder()), (head, model.get_output_embeddings()))
        if inner is not None and own is not None
    ]
    tensors = dict(wrapper.named_parameters(remove_duplicate=False))
    back = [(own, inner) for inner, own in places]
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            tensor = tensors.get(renamed(".".join(filter(None, (path, name))), back))
            if parameter is None:
                continue
            if tensor is None or tensor.shape != parameter.shape:
                return None
            module._parameters[name] = tensor
    model.tie_weights()
    return Alone(model.to(table.weight.device).eval(), places)


def renamed(name: str, places: Places) -> str:
    """Return a tensor's name where the longest beginning that `places` has is exchanged."""
    for before, after in sorted(places, key=lambda pair: -len(pair[0])):
        if name.startswith(before):
            return after + name.removeprefix(before)
    return name


def _path(model: nn.Module, part: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is part)
