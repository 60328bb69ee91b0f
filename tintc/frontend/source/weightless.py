"""A model that has its configuration's shapes and no weights, for whoever asks only what would be made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedModel

from tintc.errors import ModelError
from tintc.frontend.source.wrappers import loader_of

WEIGHTS = ("*.safetensors", "*.bin")
"""Files that a folder's weights may lie in."""
IN_A_BYTE = 8
"""Parameters that a byte of a file holds at most: quantised ones take a bit or more."""
SMALL = 1 << 24
"""Parameters that are built whatever the files hold: 64 MB."""


def weightless_model(config: Any, attn_implementation: str, **options: Any) -> PreTrainedModel:
    """Return a model whose parameters are zeros that take no memory.

    Buffers, which the configuration determines, are computed. options: of `from_config`.
    """
    with init_empty_weights(include_buffers=False):
        model = loader_of(config).from_config(config, attn_implementation=attn_implementation, **options)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                module._parameters[name] = nn.Parameter(zeros, requires_grad=False)
    model.tie_weights()
    return model.eval()


def check_parameters(name: str, config: Any, weights: list[Path], trusted: bool) -> None:
    """Raise `ModelError` for a configuration of many more parameters than its files of weights can hold.

    transformers allocates, and draws at random, all that a configuration asks for and the files do not have.
    """
    held = sum(file.stat().st_size for file in weights) * IN_A_BYTE
    with init_empty_weights(include_buffers=True):
        model = loader_of(config).from_config(config, trust_remote_code=trusted)
    asked = sum(parameter.numel() for parameter in model.parameters())
    if asked > held + SMALL:
        raise ModelError(
            f"{name} has a configuration of {asked:,} parameters, and its files hold {held:,} at most; get both from "
            "one place."
        )


def weight_files(folder: Path) -> list[Path]:
    """Return the files in a folder that weights may lie in."""
    return [file for pattern in WEIGHTS for file in folder.glob(pattern) if file.is_file()]
