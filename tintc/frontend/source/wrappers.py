"""Models of text and something else, such as images, which compile as the decoder of text inside."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM, PretrainedConfig

from tintc.frontend.graph.calling import text_decoder

LOADERS = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)
"""The classes that load a decoder, or a model with one inside; the first that knows the configuration's type does."""
PLACEHOLDER = re.compile(r"(image|video|audio)_token_(id|index)")
"""Entries of a configuration with the id of the token in whose place an image, a video or a sound is put."""
TEXT_PATH = "text_path"
"""Key of the provenance's entry that names the decoder inside."""


def loader_of(config: PretrainedConfig) -> Any:
    """Return the Auto class that loads a model of that configuration; that of decoders if none does."""
    for loader in LOADERS:
        if type(config) in loader._model_mapping:  # its keys() would import every configuration there is
            return loader
    return LOADERS[0]


def placeholders(model: nn.Module) -> tuple[int, ...]:
    """Return the token ids of a wrapper that stand for something else than text; none if it is no wrapper."""
    if text_decoder(model) is None:
        return ()
    entries: dict[str, Any] = vars(getattr(model, "config", None))
    ids = {value for name, value in entries.items() if PLACEHOLDER.fullmatch(name) and isinstance(value, int)}
    return tuple(sorted(ids))


def text_path(model: nn.Module) -> str:
    """Return what is compiled of a wrapper, for its provenance; empty for another model."""
    decoder = text_decoder(model)
    if decoder is None:
        return ""
    return f"the decoder {type(decoder).__name__} in {type(model).__name__}, on token ids without images"
