"""Refusal of models that are known not to compile by their type, before anything is loaded or captured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from torch import nn

from tintc.errors import UnsupportedModelError
from tintc.frontend.graph.calling import text_config
from tintc.known_families import known_obstacles, known_reasons


def refuse_known_configuration(name: str, entries: Mapping[str, Any], trusted: bool) -> None:
    """Raise `UnsupportedModelError` if a model with a folder's configuration is known not to compile.

    A wrapper is of its decoder's type too. trusted: whether code that comes with the model is run, and not
    transformers' own of that type.
    """
    if trusted and "auto_map" in entries:
        return
    inner = entries.get("text_config")
    for one in (entries, inner):
        if isinstance(one, Mapping):
            _refuse(name, one)


def refuse_known_model(name: str, model: nn.Module) -> None:
    """Raise `UnsupportedModelError` if this model is known not to compile, and its class is transformers' own."""
    if not type(model).__module__.startswith("transformers."):
        return
    for config in (getattr(model, "config", None), text_config(model)):
        if config is not None:
            _refuse(name, config.to_dict())


def _refuse(name: str, configuration: Mapping[str, Any]) -> None:
    obstacles = known_obstacles(configuration, transformers.__version__)
    if obstacles:
        kind = configuration["model_type"]
        advice = (
            f"this is of a small model of type {kind}, which was tried with transformers {transformers.__version__}; "
            f"yours was not: `tintc families {kind}` says more, and --try-anyway (try_anyway=True) tries it all the "
            "same"
        )
        reasons = known_reasons(configuration, transformers.__version__)
        raise UnsupportedModelError(name, reasons, obstacles, advice)
