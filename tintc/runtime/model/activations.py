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
    """What the last run inside the ``with`` block has shown, by point."""


class ActivationAccess:
    """The part of `TintForCausalLM` that captures and edits."""

    program: Program

    def _observe(self) -> None:
        self.edits: dict[Value, Edit] = {}
        self._edited: tuple[str, ...] = ()
        self._captures: list[tuple[tuple[str, ...], CapturedValues]] = []

    def capture_points(self) -> list[Point]:
        """Every capture point: its name, its shape (``B`` examples, ``T`` tokens) and what it is."""
        return list(points_of(self.program).values())

    def roles(self) -> Roles:
        """What every head and gate is there for: rows of `tintc.analysis.head_roles.Role`, ``to_json()``."""
        return Roles(self.program)

    @contextmanager
    def capture(self, *patterns: str) -> Iterator[CapturedValues]:
        """Fills the dictionary it gives with the points that match, at every run inside the block.

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
        """Inside the block, the values at these points are replaced: ``{pattern: function of [B, T, width]}``.

        Whatever reads the point afterwards, the backward pass included, reads what the function returns. A batch must
        run whole. Raises `OptionError` for points that are no token values, and for a value that several passes share
        unless all of them are meant: what no update reaches is computed once.
        """
        before, labels = dict(self.edits), self._edited
        made: dict[Value, Edit] = {}
        points = points_of(self.program)
        for pattern, function in edits.items():
            names = select(self.program, (pattern,))
            if not callable(function):
                raise OptionError(
                    f"The edit of {pattern!r} is a {type(function).__name__}; pass a function of the value, such as "
                    "lambda x: tensor."
                )
            check_editable([points[name] for name in names], list(points.values()), pattern)
            made |= {points[name].value: _same_shape(name, function) for name in names}
            labels = (*labels, *(name for name in names if name not in labels))
        self.edits, self._edited = before | made, labels
        try:
            yield
        finally:
            self.edits, self._edited = before, tuple(name for name in labels if points[name].value in before)

    def _refuse_points(self, *wanted: bool | None) -> None:
        """With a cache or a state a pass does not see the whole text, so there are no whole values to show."""
        if any(wanted) or self._captures or self._edited:
            raise OptionError(
                "Hidden states, attentions, captures and edits are of whole passes; leave the cache and the state out "
                "(use_cache=False)."
            )

    def _with_points(self, outputs: tuple[str, ...]) -> tuple[str, ...]:
        """The outputs of a run, and the points that somebody captures or edits. Edited values are needed whole."""
        if not self._captures and not self._edited:
            return outputs
        wanted = (*outputs, *self._edited, *(name for names, _ in self._captures for name in names))
        return tuple(dict.fromkeys(wanted))

    def _fill_captures(self, found: Mapping[str, Tensor]) -> None:
        """Give every capture the points that it wants."""
        for names, seen in self._captures:
            seen.clear()
            seen.update((name, found[name]) for name in names)


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
        made = function(value)
        if not isinstance(made, Tensor) or made.shape != value.shape:
            found = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise InputError(f"The edit of {name} returned {found}; it must return a tensor of {list(value.shape)}.")
        return made.to(value)

    return checked


@dataclass(frozen=True)
class OnDemand:
    """What one call returns besides logits: hidden states, attentions, or both, before and after the update."""

    hidden_states: bool
    attentions: bool

    @classmethod
    def of(cls, config: PretrainedConfig, hidden_states: bool | None, attentions: bool | None) -> OnDemand:
        """None: what the configuration says."""
        hidden = config.output_hidden_states if hidden_states is None else hidden_states
        return cls(bool(hidden), bool(config.output_attentions if attentions is None else attentions))

    def labels(self, program: Program) -> tuple[str, ...]:
        """The capture points that are needed."""
        points = [name for layers in self._layers(program).values() for layer in layers for name in layer]
        return tuple(dict.fromkeys(points))

    def fields(self, program: Program, found: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
        """Fields of the output, by name. Attentions of a layer that has several stand side by side, as more heads."""
        made = self._layers(program).items()
        return {
            name: tuple(
                found[one[0]] if len(one) == 1 else torch.cat([found[part] for part in one], 1) for one in layers
            )
            for name, layers in made
        }

    def _layers(self, program: Program) -> dict[str, list[list[str]]]:
        """For every field, the points of each of its tensors."""
        if not (self.hidden_states or self.attentions):
            return {}
        points, n_layers = points_of(program), program.attributes["n_layers"]
        found: dict[str, list[list[str]]] = {}
        for at, suffix in ((program.attributes["n_steps"], ""), (0, "_before")):
            if self.hidden_states:
                between = [[f"pass{at}.layers.{layer}.residual"] for layer in range(n_layers - 1)]
                found[f"hidden_states{suffix}"] = [[f"pass{at}.embeddings"], *between, [f"pass{at}.final"]]
            if self.attentions:
                stems = [f"pass{at}.layers.{layer}.attention" for layer in range(n_layers)]
                found[f"attentions{suffix}"] = [
                    [name for name in points if name == stem or name.startswith(f"{stem}.")] for stem in stems
                ]
        return found
