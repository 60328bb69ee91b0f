"""Tiny random models of images and text."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tools.sweep.tiny import _merged, _small

SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 3, 3]}}
TOWER = {"hidden_size": 60, "out_hidden_size": 60, "depth": 1, "num_heads": 3}
TYPES: dict[str, dict[str, Any]] = {
    "gemma3": {},  # replaces the ids of images, which lie outside its vocabulary
    "gemma4": {},  # caps its logits after the head
    "qwen2_5_vl": {"vision_config": TOWER, "text_config": SECTIONS},  # positions of three kinds
    "qwen3_vl": {},  # no argument use_cache of its own
    "mistral3": {},
    "smolvlm": {},
    "llava": {},
    "cohere2_vision": {},  # scales its logits after the head
    "mllama": {},  # layers that a text without images skips
}
"""Types, and what is small in them besides what the sweep makes so."""


def wrapper(kind: str, dtype: torch.dtype = torch.float64, **decoder: Any) -> Any:
    """A tiny wrapper of that type with random weights. decoder: options of its model of text."""
    configuration = CONFIG_MAPPING[kind]
    torch.manual_seed(0)
    options = _merged(_merged(_small(configuration()), TYPES[kind]), {"text_config": decoder} if decoder else {})
    model = AutoModelForImageTextToText.from_config(configuration(**options), attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype).eval()
