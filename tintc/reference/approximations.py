"""`Approximations`: what a simulator leaves out of the exact gradient, each with a switch of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import Node

from tintc.errors import OptionError
from tintc.option_facts import DESCENDS, FD_STEPS, GROUPS, SCHEMES

Lookup = Callable[[Node], Any]


class Override(Protocol):
    """What a run of an exported graph computes in place of a node: that is how approximations enter.

    It reads `inputs`, and is called with their values and the run's dtype.
    """

    inputs: tuple[Node, ...]

    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Any: ...


@dataclass(frozen=True)
class Difference:
    """A derivative to first order, ``J_f(x) g ~ (f(x + h g) - f(x)) / h`` (paper Defs. F.3, G.3).

    scheme ``fixed``: h is `step`; ``token``: h is ``step * scale / rms(g)`` for every token on its own, where the scale
    is 1 for activations and that of the norm at x for norms; ``central``: that h both ways, a third of it for
    activations, ``(f(x + h g) - f(x - h g)) / 2h``, and none where activations have kinks, which autograd
    differentiates. A zero gradient gives zero. step None: 0.003 for central ones, 0.001 for others.
    """

    scheme: str = "token"
    step: float | None = None

    def __post_init__(self) -> None:
        if self.step is None and self.scheme in FD_STEPS:
            object.__setattr__(self, "step", FD_STEPS[self.scheme])
        if self.scheme not in SCHEMES:
            raise OptionError(f"The difference {self.scheme!r} is unknown; choose one of {', '.join(SCHEMES)}.")

    def along(self, f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor, is_norm: bool) -> Tensor:
        """Return the derivative of f at ``x [..., D]`` along g, of the shape of x."""
        assert self.step is not None
        at_x = f(x)
        if self.scheme == "fixed":
            return (f(x + self.step * g) - at_x) / self.step
        size = g.pow(2).mean(-1, keepdim=True).sqrt()
        unit = g / size.masked_fill(size == 0, 1.0)
        scale: Tensor | float = 1.0
        if is_norm:
            scale = norm_scale(f, x, at_x, unit)
        elif self.scheme == "central":
            scale = 1 / 3
        move = self.step * scale * unit
        if self.scheme == "central":
            return size * (f(x + move) - f(x - move)) / (2 * self.step * scale)
        return size * (f(x + move) - at_x) / (self.step * scale)

    def of_softmax(self, scores: Tensor, c: Tensor) -> Tensor:
        """Return the derivative of the softmax of ``scores [..., n, m]`` along c, which is zero where keys are hidden;
        h is ``step / |c|`` for every row on its own, or `step` if that is fixed."""
        assert self.step is not None
        if self.scheme == "fixed":
            return ((scores + self.step * c).softmax(-1) - scores.softmax(-1)) / self.step
        size = c.norm(dim=-1, keepdim=True)
        move = self.step * c / size.masked_fill(size == 0, 1.0)
        if self.scheme == "central":
            return size * ((scores + move).softmax(-1) - (scores - move).softmax(-1)) / (2 * self.step)
        return size * ((scores + move).softmax(-1) - scores.softmax(-1)) / self.step


def norm_scale(f: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, unit: Tensor) -> Tensor:
    """Return what a norm f without gain and bias divides x by, from ``y = f(x)``: ``[..., D] -> [..., 1]``.

    ``y = x / c`` gives ``<x, y> = c <y, y>``. So does LayerNorm's ``y = (x - mu) / c``, whose entries add up to zero:
    ``<x, y> = <x - mu, y>``. Where y is zero, the same is asked of a tiny vector along `unit`, added to x.
    """
    nothing = y.pow(2).sum(-1, keepdim=True) == 0
    if nothing.any():
        tiny = 1e-9 * unit
        x, y = torch.where(nothing, tiny, x), torch.where(nothing, f(x + tiny), y)
    square = y.pow(2).sum(-1, keepdim=True)
    return torch.where(square == 0, 1.0, (x * y).sum(-1, keepdim=True) / square.masked_fill(square == 0, 1.0))


@dataclass(frozen=True)
class Approximations:
    """Switches of `tune`; all off is autograd and gradient descent on every parameter.

    scores: attention probabilities are constants of the differentiation (Def. E.3), or, if this is a `Difference`, they
    are differentiated by it; router: constants too are the weights with
    which a mixture sums its experts' results; norms, activations: their
    derivative by finite differences (Defs. F.3, G.3), None: exact; groups: the only parameters that descend, of the
    layers that are updated, as names or one string with commas between; None: all parameters of these layers, or of the
    whole model where no number of layers is given; train_tokens: a parameter's gradient sums over train
    tokens alone, although earlier tokens may influence the loss too; tiled_bias: the authors' code keeps the bias of a
    linear layer whose input is m model widths wide m times, and updates every copy, so that its gradient counts m
    times (construction.md, section 10).
    """

    scores: bool | Difference = False
    norms: Difference | None = None
    activations: Difference | None = None
    groups: Iterable[str] | None = None
    train_tokens: bool = False
    tiled_bias: bool = False
    router: bool = False

    def __post_init__(self) -> None:
        if self.groups is None:
            return
        names = self.groups.split(",") if isinstance(self.groups, str) else self.groups
        object.__setattr__(self, "groups", frozenset(names))  # whatever it was, and hashable
        unknown = sorted(frozenset(self.groups) - set(GROUPS))
        if unknown:
            raise OptionError(
                f"The parameter group {unknown[0]!r} is unknown; choose among {', '.join(sorted(GROUPS))}."
            )

    @classmethod
    def of(cls, semantics: str = "exact", step: float | None = None, gradient: str = "paper") -> Approximations:
        """Return all those of a simulator with these semantics, ``exact`` or ``paper-code``, and this gradient,
        ``paper`` or ``full``."""
        if semantics not in ("exact", "paper-code"):
            raise OptionError(f"The semantics {semantics!r} is unknown; choose exact or paper-code.")
        if gradient == "full":
            central = Difference("central", step)
            return cls(central, central, central, DESCENDS, True)
        difference = Difference("token" if semantics == "exact" else "fixed", step)
        return cls(True, difference, difference, DESCENDS, True, semantics == "paper-code", router=True)
