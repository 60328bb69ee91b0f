"""What a forward pass returns: `TintOutput`, and the capture points that some of its fields are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig
from transformers.utils.generic import ModelOutput

from tintc.analysis.capture_points import points_of
from tintc.ir.core import Program
from tintc.runtime.model.unsupported import NoField


@dataclass
class TintOutput(ModelOutput):
    """What a simulator returns.

    loss: mean next-token cross-entropy of `labels` under `logits`; logits ``[B, T, V]`` after the update;
    logits_before: of the unchanged auxiliary, None unless asked for. past_key_values: the cache, if one is used.
    hidden_states: after the update, as transformers has them, L + 1 tensors ``[B, T, D]``: embeddings, residual
    streams, and last what the head reads; attentions: L tensors ``[B, H, T, T]``; both also before the update. As a
    tuple it ends with those after the update, as transformers' outputs do.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    logits_before: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states_before: tuple[Tensor, ...] | None = None
    attentions_before: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    @property
    def last_hidden_state(self) -> Tensor:
        """Raise `NoField`."""
        raise NoField(
            "A simulator has no base model with a last_hidden_state (TRL's trainers ask for one); use transformers' "
            "Trainer with sim.trainable('prefixes'), or hidden_states[-1] of output_hidden_states=True."
        )


@dataclass(frozen=True)
class OnDemand:
    """What one call returns besides logits: hidden states, attentions, or both, before and after the update."""

    hidden_states: bool
    attentions: bool

    @classmethod
    def of(cls, config: PretrainedConfig, hidden_states: bool | None, attentions: bool | None) -> OnDemand:
        """Return what a call asks for; what the configuration says stands in for None."""
        if hidden_states is None:
            hidden_states = config.output_hidden_states
        if attentions is None:
            attentions = config.output_attentions
        return cls(bool(hidden_states), bool(attentions))

    def labels(self, program: Program) -> tuple[str, ...]:
        """Return the capture points that are needed."""
        points = [name for layers in self._layers(program).values() for layer in layers for name in layer]
        return tuple(dict.fromkeys(points))

    def fields(self, program: Program, values: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
        """Return fields of the output, by name, from the values of capture points.

        Attentions of a layer that has several stand side by side, as more heads.
        """
        fields: dict[str, tuple[Tensor, ...]] = {}
        for name, layers in self._layers(program).items():
            fields[name] = tuple(_side_by_side([values[point] for point in points]) for points in layers)
        return fields

    def _layers(self, program: Program) -> dict[str, list[list[str]]]:
        """Return, for every field, the points of each of its tensors."""
        if not (self.hidden_states or self.attentions):
            return {}
        points = points_of(program)
        n_layers = program.attributes["n_layers"]
        layers: dict[str, list[list[str]]] = {}
        for at, suffix in ((program.attributes["n_steps"], ""), (0, "_before")):
            if self.hidden_states:
                between = [[f"pass{at}.layers.{layer}.residual"] for layer in range(n_layers - 1)]
                layers[f"hidden_states{suffix}"] = [[f"pass{at}.embeddings"], *between, [f"pass{at}.final"]]
            if self.attentions:
                stems = [f"pass{at}.layers.{layer}.attention" for layer in range(n_layers)]
                layers[f"attentions{suffix}"] = [
                    [name for name in points if name == stem or name.startswith(f"{stem}.")] for stem in stems
                ]
        return layers


def _side_by_side(heads: list[Tensor]) -> Tensor:
    """Return tensors ``[B, H, ...]`` as one, without a copy if it is one."""
    if len(heads) == 1:
        return heads[0]
    return torch.cat(heads, 1)
