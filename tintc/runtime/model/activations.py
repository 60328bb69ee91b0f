"""Looking at and changing the auxiliary's own quantities while a simulator runs, in either executor.

    with sim.capture("layers.*.residual", "step0.gradients.*") as seen:
        sim(ids)
    seen["pass1.layers.2.residual"]

Points are more outputs of the run: fused execution stays fused, and costs what computing and keeping them costs. Names
are those of `tintc.analysis.capture_points`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from tintc.analysis.capture_points import Point, points_of, select
from tintc.analysis.head_roles import Roles
from tintc.errors import InputError, OptionError
from tintc.ir.core import Program, Value

Edit = Callable[[Tensor], Tensor]


class CapturedValues(dict[str, Tensor]):
    """The values of the last run inside the ``with`` block, by point."""


class ActivationAccess:
    """The part of `TintForCausalLM` that captures and edits."""

    program: Program

    def _observe(self) -> None:
        self.edits: dict[Value, Edit] = {}
        self._edited: tuple[str, ...] = ()
        self._captures: list[tuple[tuple[str, ...], CapturedValues]] = []

    def capture_points(self) -> list[Point]:
        """Return every capture point: its name, its shape (``B`` examples, ``T`` tokens) and what it is."""
        return list(points_of(self.program).values())

    def roles(self) -> Roles:
        """Return the role of every head and gate: rows of `tintc.analysis.role.Role`, ``to_json()``."""
        return Roles(self.program)

    @contextmanager
    def capture(self, *patterns: str) -> Iterator[CapturedValues]:
        """Fill the dictionary it gives with the points that match, at every run inside the block.

        patterns: names with ``*`` and ``?``; without ``pass<p>.`` or ``step<s>.`` in front they mean every pass or
        step. Raises `OptionError` for a pattern that no point matches, and without any.
        """
        if not patterns:
            raise OptionError("Say what to capture, '*' for everything; sim.capture_points() lists what there is.")
        request = tuple(select(self.program, patterns)), CapturedValues()
        self._captures.append(request)
        try:
            yield request[1]
        finally:
            self._captures = [other for other in self._captures if other is not request]

    @contextmanager
    def edit(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """Replace the values at these points inside the block: ``{pattern: function of [B, T, width]}``.

        Whatever reads the point afterwards, the backward pass included, reads what the function returns. A batch must
        run whole. Raises `OptionError` for points that are no token values, and for a value that several passes share
        unless all of them are meant: what no update reaches is computed once.
        """
        before = dict(self.edits)
        labels = self._edited
        added: dict[Value, Edit] = {}
        points = points_of(self.program)
        for pattern, function in edits.items():
            names = select(self.program, (pattern,))
            if not callable(function):
                raise OptionError(
                    f"The edit of {pattern!r} is a {type(function).__name__}; pass a function of the value, such as "
                    "lambda x: tensor."
                )
            check_editable([points[name] for name in names], list(points.values()), pattern)
            added |= {points[name].value: _same_shape(name, function) for name in names}
            labels = (*labels, *(name for name in names if name not in labels))
        self.edits = before | added
        self._edited = labels
        try:
            yield
        finally:
            self.edits = before
            self._edited = tuple(name for name in labels if points[name].value in before)

    def _refuse_points(self, *wanted: bool | None) -> None:
        """Raise `OptionError` if anybody wants whole values, which passes with a cache or a state do not have."""
        if any(wanted) or self._captures or self._edited:
            raise OptionError(
                "Hidden states, attentions, captures and edits are of whole passes; leave the cache and the state out "
                "(use_cache=False)."
            )

    def _with_points(self, outputs: tuple[str, ...]) -> tuple[str, ...]:
        """Return the outputs of a run and the points that are captured or edited; edited values are needed whole."""
        if not self._captures and not self._edited:
            return outputs
        wanted = (*outputs, *self._edited, *(name for names, _ in self._captures for name in names))
        return tuple(dict.fromkeys(wanted))

    def _fill_captures(self, values: Mapping[str, Tensor]) -> None:
        """Give every capture the points that it wants."""
        for names, seen in self._captures:
            seen.clear()
            seen.update((name, values[name]) for name in names)


def check_editable(chosen: list[Point], points: list[Point], pattern: str) -> None:
    """Raise `OptionError` unless every chosen point can be replaced, in the chosen passes alone."""
    refused = [point.name for point in chosen if not point.editable]
    if refused:
        raise OptionError(
            f"{refused[0]} cannot be edited: only token values can (residual streams, results of linear layers and "
            "norms), attention patterns, activations and gradients cannot."
        )
    names, values = {point.name for point in chosen}, {point.value for point in chosen}
    passes = {point.name.partition(".")[0] for point in chosen}
    also = [p.name for p in points if p.value in values and not p.show and p.name.partition(".")[0] not in passes]
    if also and not names.issuperset(also):
        raise OptionError(
            f"{pattern!r} would change {also[0]} too: no update reaches this value, and it is computed once for all "
            f"passes. Edit it in all of them: {pattern.partition('.')[2]!r}."
        )


def _same_shape(name: str, function: Edit) -> Edit:
    def checked(value: Tensor) -> Tensor:
        edited = function(value)
        wanted = f"it must return a tensor of {list(value.shape)}"
        if not isinstance(edited, Tensor):
            raise InputError(f"The edit of {name} returned {type(edited).__name__}; {wanted}.")
        if edited.shape != value.shape:
            raise InputError(f"The edit of {name} returned {list(edited.shape)}; {wanted}.")
        return edited.to(value)

    return checked


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
