"""A model that has its configuration's shapes and no weights, for whoever asks only what would be made of it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedModel

from tintc.frontend.source.wrappers import loader_of


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


def count_parameters(config: Any, trusted: bool) -> int:
    """Return how many parameters a configuration asks for. trusted: whether Python code that comes with the model may
    be run."""
    with init_empty_weights(include_buffers=True):
        # of a copy: building a model writes dtypes into its configuration
        model = loader_of(config).from_config(copy.deepcopy(config), trust_remote_code=trusted)
    return sum(parameter.numel() for parameter in model.parameters())
