"""Refusal of types of models of which it is known that none compiles, before anything is loaded or captured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from torch import nn

from tintc.errors import UnsupportedModelError
from tintc.frontend.graph.calling import text_config
from tintc.known_families import known_obstacles


def refuse_known_configuration(name: str, entries: Mapping[str, Any], trusted: bool) -> None:
    """Raise `UnsupportedModelError` if no model of the type that a folder's configuration names compiles.

    A wrapper is of its decoder's type too. trusted: whether code that comes with the model is run, and not
    transformers' own of that type.
    """
    if trusted and "auto_map" in entries:
        return
    inner = entries.get("text_config")
    for one in (entries, inner):
        if isinstance(one, Mapping):
            _refuse(name, one.get("model_type"))


def refuse_known_model(name: str, model: nn.Module) -> None:
    """Raise `UnsupportedModelError` if no model of this type compiles, and it is what transformers makes of it."""
    if not type(model).__module__.startswith("transformers."):
        return
    for config in (getattr(model, "config", None), text_config(model)):
        _refuse(name, getattr(config, "model_type", None))


def _refuse(name: str, model_type: object) -> None:
    if not isinstance(model_type, str):
        return
    obstacles = known_obstacles(model_type, transformers.__version__)
    if obstacles:
        advice = (
            f"so it is for all models of type {model_type}, which were tried with transformers "
            f"{transformers.__version__}, and this one was not: `tintc families {model_type}` lists the operations, "
            "and --try-anyway (try_anyway=True) tries it all the same"
        )
        raise UnsupportedModelError(name, (), obstacles, advice)
