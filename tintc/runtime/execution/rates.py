"""Learning rates that are given where a simulator runs, in place of the stored ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tintc.errors import OptionError
from tintc.ir.core import Program
from tintc.ir.simulator import SimOp

Rate = float | Tensor | Sequence[float]
"""A number; ``[B]``, one per example; ``[N]``, one per step; ``[N, B]``, ``[N, 1]`` or ``[1, B]``. One dimension is
refused where B is N, unless both are 1, because it does not say which it is."""
GivenRates = Rate | Mapping[int | str, Rate] | None
DEFAULT = "default"
"""The key of a mapping for all layers that it does not name."""
SHAPES = "pass a number, one per example [B], one per step [N], or [N, B]"


@dataclass(frozen=True)
class Rates:
    """Rates of a run, each ``[N, B]``: by the auxiliary's layer, and those of all others (None: as they are stored).

    layers: the auxiliary's layer of every parameter that has a stored rate.
    """

    layers: Mapping[str, int]
    others: Tensor | None
    by_layer: Mapping[int, Tensor] = field(default_factory=dict)

    def of(self, name: str, step: int) -> Tensor | None:
        """Return the rate ``[B]`` of a parameter in a step; None: the stored one."""
        rate = self.by_layer.get(self.layers[name], self.others)
        if rate is None:
            return None
        return rate[step]

    def rows(self, rows: slice) -> Rates:
        """Return those of some of the examples."""
        return self._each(lambda rate: rate[:, rows])

    def repeated(self, count: int) -> Rates:
        """Return the same for every example repeated, as many rows side by side."""
        return self._each(lambda rate: rate.repeat_interleave(count, 1))

    def resized(self, count: int) -> Rates:
        """Return new ones for so many examples, all zero."""
        return self._each(lambda rate: rate.new_zeros(rate.shape[0], count))

    def copy_rows(self, other: Rates) -> None:
        """Take over those of another, of the same layers and no more examples; all others become zero."""
        for mine, given in zip(self._all(), other._all(), strict=True):
            mine[:, given.shape[1] :] = 0
            mine[:, : given.shape[1]].copy_(given)

    def to(self, device: torch.device) -> Rates:
        return self._each(lambda rate: rate.to(device))

    @property
    def alike(self) -> bool:
        """Return True if all examples have the same."""
        return all(bool((rate == rate[:, :1]).all()) for rate in self._all())

    @property
    def batch(self) -> int:
        """Return the number of examples that they are for; 1 if all are as stored."""
        return next((rate.shape[1] for rate in self._all()), 1)

    def _all(self) -> list[Tensor]:
        rates = [self.by_layer[layer] for layer in sorted(self.by_layer)]
        if self.others is not None:
            rates.append(self.others)
        return rates

    def _each(self, change: Callable[[Tensor], Tensor]) -> Rates:
        others = self.others
        if others is not None:
            others = change(others)
        return Rates(self.layers, others, {layer: change(rate) for layer, rate in self.by_layer.items()})


def rates_of(inner_lr: Any, program: Program, batch: int, dtype: torch.dtype, device: torch.device) -> Rates:
    """Return the rates that a user passes: a `Rate`, or a mapping from layers, and `DEFAULT`, to rates.

    Raises `OptionError` for what is none, for layers that the simulator does not update, and for rates that are
    negative or not finite.
    """
    if isinstance(inner_lr, Rates):
        return inner_lr.to(device)
    layers = _layers(program)
    steps = program.attributes["n_steps"]

    def resolved(rate: Any) -> Tensor:
        return _resolved(rate, steps, batch, dtype).to(device)

    if not isinstance(inner_lr, Mapping):
        return Rates(layers, resolved(inner_lr))
    named = {key: rate for key, rate in inner_lr.items() if key != DEFAULT}
    for key in named:
        _check_layer(key, sorted(set(layers.values())))
    others = None
    if DEFAULT in inner_lr:
        others = resolved(inner_lr[DEFAULT])
    return Rates(layers, others, {int(layer): resolved(rate) for layer, rate in named.items()})


def _layers(program: Program) -> dict[str, int]:
    return {name: op.layer for op in program.ops if isinstance(op, SimOp) for name in op.rates()}


def _check_layer(key: object, updated: Sequence[int]) -> None:
    if isinstance(key, bool) or not isinstance(key, int) or key not in updated:
        shown = ", ".join(map(str, updated))
        raise OptionError(
            f"inner_lr has a rate for layer {key!r}; this simulator updates the layers {shown}. Name these alone, and "
            f"{DEFAULT!r} for the others."
        )


def _resolved(inner_lr: Any, steps: int, batch: int, dtype: torch.dtype) -> Tensor:
    """Return the rates ``[N, B]``, through which autograd goes on."""
    try:
        rate = torch.as_tensor(inner_lr, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"inner_lr is {inner_lr!r}; {SHAPES}.") from error
    shape = tuple(rate.shape)
    if shape == (batch,) == (steps,) and batch > 1:
        warnings.warn(
            f"inner_lr has {batch} rates, and there are {batch} examples and {batch} steps; they are taken as one per "
            f"example. Write [[r, s, ...]], of shape (1, {batch}), to say so, or [[r], [s], ...], of shape ({batch}, "
            "1), for one per step.",
            stacklevel=2,
        )
    if shape in ((), (batch,)):
        rate = rate.expand(steps, batch)
    elif shape == (steps,):
        rate = rate[:, None].expand(steps, batch)
    elif len(shape) == 2 and shape[0] in (1, steps) and shape[1] in (1, batch):
        rate = rate.expand(steps, batch)
    else:
        raise OptionError(f"inner_lr has shape {shape}; {SHAPES}: here B is {batch} and N is {steps}.")
    if not bool((torch.isfinite(rate) & (rate >= 0)).all()):
        raise OptionError("The learning rate must be finite and not negative.")
    return rate
