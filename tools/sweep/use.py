"""Which types are widely used, as far as that can be read off what is installed."""

from __future__ import annotations

from functools import cache

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES


def is_widely_used(model_type: str) -> bool:
    """Return True for a type that other tools have entries of their own for: transformers, which reads it from GGUF
    files, or peft, which knows the layers of it that adapters are for."""
    return model_type in _with_entries()


@cache
def _with_entries() -> frozenset[str]:
    return frozenset(GGUF_SUPPORTED_ARCHITECTURES) | frozenset(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)
