"""Where an auxiliary model came from: the entries of a simulator's provenance, plain JSON values."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

TOKENIZER_PROBLEM = "tokenizer_problem"
"""Key of the entry that says why the tokenizer beside the weights cannot be read."""
ADAPTERS = "adapters"
"""Key of the entry that says what became of adapters."""
ADAPTER_FATES = {False: "merged", True: "kept"}


def provenance_of(model: nn.Module, name: str, kind: str) -> dict[str, Any]:
    """Return what every model's provenance says. kind: ``memory``, or the format of its files."""
    config: Any = getattr(model, "config", None)
    architectures = getattr(config, "architectures", None)
    if not isinstance(architectures, list | tuple) or not all(isinstance(one, str) for one in architectures):
        architectures = None
    return {
        "source": name,
        "format": kind,
        "model_type": getattr(config, "model_type", ""),
        "architectures": list(architectures or [type(model).__name__]),
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "dtype": str(stored_dtype(model)).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def stored_dtype(model: nn.Module) -> torch.dtype:
    """Return the type of the model's weights, that of the first that is a floating one."""
    return next(weight.dtype for weight in model.parameters() if weight.is_floating_point())
