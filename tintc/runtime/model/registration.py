"""Where transformers looks for the class of simulators."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoModelForCausalLM

from tintc.runtime.artefact.config import TintConfig

MODEL = "TintForCausalLM"
"""`transformers serve` and TRL look for the class that a folder's config.json names, by this name in transformers."""


def register_model(model: Any) -> None:
    """Register the class of simulators, or one that stands for it, in place of what was registered before."""
    AutoModelForCausalLM.register(TintConfig, model, exist_ok=True)
    setattr(transformers, MODEL, model)
