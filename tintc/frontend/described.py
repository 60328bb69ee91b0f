"""`describe_model`: what an artefact keeps of its auxiliary besides the weights, so that it can be built again.

The simulator's own parameters say which tensor of the auxiliary each is a view of: transposed, certain rows. Missing
are the configuration, how gains were computed that are not tensors of the model, such as 1 + w, and where tensors lie
in the model that is built: of a wrapper that is its decoder of text alone, of a model with adapters the one without.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tintc.frontend.alone import Places
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.source.adapters import Adapter

VERSION = 1
PRIVATE = ("_name_or_path", "name_or_path", "quantization_config")
"""Entries of a configuration that say where a model lay, or how its weights were packed there."""
ROUNDING = 1e-12


def describe_model(
    model: PreTrainedModel, graph: CapturedGraph, places: Places | None = None, adapters: list[Adapter] | None = None
) -> str:
    """Return a JSON object, as text.

    class: of transformers; config: its configuration; generation: its settings for generating, null if there are none;
    sums: constant -> the parameter that it is made of, and the number that was added to it; places: beginnings of names
    in the captured model and what stands for them in this one; adapters: layers that were captured beside a weight, and
    are added to it in this one.
    """
    entries: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    settings = getattr(model, "generation_config", None)
    sums: dict[str, dict[str, Any]] = {}
    for name, origin in graph.origins.items():
        added = _added(graph.tensors[name], graph.tensors[origin])
        if added is not None:
            sums[name] = {"of": origin, "plus": added}
    described = {
        "version": VERSION,
        "class": type(model).__name__,
        "config": {key: value for key, value in entries.items() if key not in PRIVATE},
        "generation": None if settings is None else json.loads(settings.to_json_string()),
        "sums": sums,
        "places": places or [],
        "adapters": [asdict(adapter) for adapter in adapters or []],
    }
    return json.dumps(described, indent=1)


def _added(tensor: Tensor, origin: Tensor) -> float | None:
    """Return the number that makes a tensor of another when it is added; None if there is none."""
    if tensor.numel() != origin.numel():
        return None
    apart = tensor.to(torch.float64).flatten() - origin.to(torch.float64).flatten()
    if float((apart - apart[0]).abs().max()) > ROUNDING:
        return None
    return float(apart[0])
