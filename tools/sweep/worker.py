"""What the sweep's workers are forked from: everything imported, and one export done, which imports more."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import transformers

from tintc.frontend.graph.trace_model import capture
from tools.sweep.family import check_family
from tools.sweep.tiny import tiny_model
from tools.sweep.variants import VARIANTS

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
capture(tiny_model("llama"))


def check(model_type: str, variant: str) -> dict[str, Any]:
    """Return the outcome of one configuration, as plain values."""
    options: dict[str, Any] = {}
    if variant:
        options = VARIANTS[model_type][variant]
    return check_family(model_type, variant, **options).to_json()
