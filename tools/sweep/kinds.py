"""What kind of decoder a type is, read off its default configuration and its modelling file; the compiler does not
ask."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import huggingface_hub
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tools.sweep.variants import DENSE

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
"""Names that configurations have for the number of experts."""
MIXER_MARK = "use_kernel_func_from_hub_with_fallback"
"""In the modelling files of types that mix tokens by recurrences or convolutions."""


@cache
def kind_of(model_type: str) -> str:
    """Return one of `tintc.reference.family_table.KINDS`."""
    if model_type in DENSE:
        return "dense"
    if _has_mixers(model_type):
        return "mixers"
    try:
        config = CONFIG_MAPPING[model_type]().to_dict()
    except (ValueError, TypeError, huggingface_hub.errors.StrictDataclassError):  # some defaults contradict themselves
        return "other"
    if _has_experts(config):
        return "experts"
    return "other"


def _has_experts(config: Mapping[str, Any]) -> bool:
    """Return True if the configuration, or one inside of it, counts experts."""
    inner = [value for value in config.values() if isinstance(value, dict)]
    # A default of None is of types that have no experts unless told how many.
    counts = [config[name] for name in EXPERT_COUNTS if name in config]
    return any(count is None or count > 1 for count in counts) or any(map(_has_experts, inner))


def _has_mixers(model_type: str) -> bool:
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    kind = getattr(transformers, name[0] if isinstance(name, tuple) else name)
    module = inspect.getmodule(kind)
    return module is not None and MIXER_MARK in inspect.getsource(module)
