"""Values that options take, facts about one option, and checks of its value. Nothing of tintc is imported here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

LOSSES = ("ce", "quad", "mse")
"""Cross-entropy of the next token, and the quadratic and mean-square losses of Remark H.2."""
GROUPS = (
    *("values", "out", "ffn", "norm-bias", "norm-gain", "lora", "outside"),
    *("queries", "keys", "head-norm", "router"),
)
"""Groups of parameters that can descend."""
DESCENDS = frozenset({"values", "out", "ffn", "norm-bias"})
"""Those that do unless told otherwise."""
FULL_ONLY = frozenset({"queries", "keys", "head-norm", "router"})
"""Groups that descend only where scores and routing are differentiated."""
ALL = "all"
"""Every group that receives a gradient."""
GRADIENTS = ("paper", "full")
"""What is differentiated: the paper's part, attention's scores and routing held constant, or everything."""
SCHEMES = ("fixed", "token", "central")
"""How a finite difference is taken: with one step, with one for each token, or with one for each token both ways."""
FD_STEPS = {"fixed": 1e-3, "token": 1e-3, "central": 3e-3}
"""Steps of finite differences unless told otherwise."""
OPTIMIZERS = ("sgd", "momentum", "normalized")
"""What a step is made of: the gradient, a running sum of gradients, or either divided by its norm."""
NORMALIZE = ("weight", "all")
"""Whose norm a normalised step divides by: each layer's own gradient's, or that of all gradients together."""
MOMENTUM = 0.9
RATE = 1e-4
NORMALISED_RATES = {"weight": 0.01, "all": 0.05}
"""The learning rate of plain steps, and of normalised ones by whose norm they divide by, unless told otherwise."""
SEMANTICS = ("exact", "paper-code")
REUSE = ("none", "layer")
LINEAR_ATTENTION = ("linear", "softmax")
DTYPES = ("float32", "bfloat16", "float64")

Check = Callable[[Any], str | None]
"""A function from a value to what is wrong with it, as the rest of a sentence; None if nothing is."""


@dataclass(frozen=True)
class About:
    """The facts about one option besides its name, type and default.

    help: a sentence for the command line and for `help(tintc.compile)`; short: a shorter name that the command line
    takes too; former: the name that it had, which is taken with a warning, and read in folders; choices: the only
    values allowed; check: its objections to a value; noun, verdict: for errors, the option's name, and the words for a
    value that is none of the choices; record: ``config`` or ``program`` if the stored configuration states the option,
    as the only place that does or as the program's attribute does; title: its row in the model card; plans: True if
    the layout depends on it, so that `tintc plan` takes it.
    """

    help: str
    short: str = ""
    former: str = ""
    choices: tuple[str, ...] = ()
    check: Check | None = None
    noun: str = ""
    verdict: str = "is unknown"
    record: str = ""
    title: str = ""
    plans: bool = True


def option(default: Any, help: str, **facts: Any) -> Any:
    """Return a field of `Options` with this default and these facts."""
    return field(default=default, metadata={"about": About(help, **facts)})


def whole(value: Any) -> str | None:
    """Return an objection to anything but whole numbers."""
    if isinstance(value, Integral):
        return None
    return "it must be a whole number"


def at_least_one(value: Any) -> str | None:
    """Return an objection to anything but whole numbers from 1 on."""
    if not isinstance(value, Integral):
        return "it must be a whole number, at least 1"
    if int(value) >= 1:
        return None
    return "it must be at least 1"


MOST_STEPS = 1 << 10
LARGEST = 1 << 24


def steps(value: Any) -> str | None:
    """Return an objection to anything but whole numbers from 1 on that a program has room for."""
    objection = at_least_one(value)
    if objection is None and int(value) > MOST_STEPS:
        return f"a program has at most {MOST_STEPS}"
    return objection


def size(value: Any) -> str | None:
    """Return an objection to anything but whole numbers from 1 on that somebody could build."""
    objection = at_least_one(value)
    if objection is None and int(value) > LARGEST:
        return f"it must be at most {LARGEST}"
    return objection


def finite_rate(value: Any) -> str | None:
    """Return an objection to negative, infinite and undefined rates, and to anything but one number."""
    if not isinstance(value, Real):
        return "it must be one number; where a simulator runs, inner_lr may be one per example, step or layer"
    if math.isfinite(value) and float(value) >= 0:
        return None
    return "it must be a finite number, zero or more"


def zero_or_more(value: Any) -> str | None:
    """Return an objection to negative, infinite and undefined numbers."""
    if isinstance(value, Real) and math.isfinite(value) and float(value) >= 0:
        return None
    return "it must be a finite number, zero or more"


def less_than_1(value: Any) -> str | None:
    """Return an objection to numbers outside the interval from 0 to 1, 0 included."""
    if isinstance(value, Real) and 0 <= float(value) < 1:
        return None
    return "it must be at least 0 and less than 1"


def between_0_and_1(value: Any) -> str | None:
    """Return an objection to numbers outside the open interval from 0 to 1."""
    if isinstance(value, Real) and 0 < float(value) < 1:
        return None
    return "it must lie between 0 and 1"
