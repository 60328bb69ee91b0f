"""The options of a compilation, each written once.

A field of `Options`, with its default and what `About` says of it, makes an argument of `tintc.compile`, an option of
the commands `compile`, `plan` and `opt`, a field of the stored configuration, and a row of the model card and of the
reports. To add an option, add a field here and read it in the pass that it is for.

Nothing of tintc is imported when this module is: the command reads it before it imports the package, which takes
seconds.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from functools import wraps
from numbers import Integral, Real
from typing import Any, TypeVar

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
T = TypeVar("T")


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


@dataclass(frozen=True)
class Options:
    """The options of the simulated descent, of the layout and of what is stored."""

    n_steps: int = option(
        1, "Simulated gradient steps.", short="steps", check=steps, record="program", title="gradient steps"
    )
    n_update_layers: int | None = option(
        None,
        "Top layers that are updated (default: all).",
        short="update-layers",
        check=whole,
        record="program",
        title="top layers that are updated",
    )
    inner_lr: float = option(
        None,
        "Learning rate (default: 0.0001; of steps normalised by weight 0.01, by all 0.05). The gradient is a sum over "
        "train tokens, not a mean: a plain step grows with their number, so longer texts want a smaller rate.",
        short="lr",
        check=finite_rate,
        noun="learning rate",
        record="config",
        title="learning rate",
        plans=False,
    )
    loss: str = option(
        "ce",
        "Loss on the train tokens: ce, cross-entropy, or quad and mse, which need no softmax over the vocabulary.",
        choices=LOSSES,
        record="config",
        title="loss",
        plans=False,
    )
    descend: str = option(
        ",".join(group for group in GROUPS if group in DESCENDS),
        "Parameter groups that are updated, with commas between; norm-gain, lora and outside are more, and with the "
        "full gradient queries, keys, head-norm and router. all: every group that receives a gradient.",
        record="config",
        title="parameters that descend",
    )
    gradient: str = option(
        "paper",
        "What is differentiated: paper, which holds attention's scores and the routing of experts constant; full, "
        "which differentiates them too.",
        choices=GRADIENTS,
        record="program",
        title="gradient",
    )
    semantics: str = option(
        "exact",
        "Which definition to follow: exact, or paper-code, the authors' implementation.",
        choices=SEMANTICS,
        record="program",
        title="semantics",
    )
    stack: int | None = option(None, "Weight rows in one prefix (default: the cheapest).", check=size)
    shards: int | None = option(None, "Parts of a weight row (default: the cheapest).", check=size)
    head_width: int | None = option(None, "Width of a head (default: the least that will do).", check=size)
    heads: int | None = option(None, "Heads of an embedding (default: the least that will do).", check=size)
    max_length: int | None = option(None, "Longest text, in tokens (default: the model's, at most 2048).", check=size)
    difference: str | None = option(
        None,
        "How finite differences are taken: fixed, with one step; token, with one per token; central, with one per "
        "token and both ways (default: token; with paper-code: fixed; with the full gradient: central).",
        former="fd_scheme",
        choices=SCHEMES,
        noun="difference",
        record="config",
        title="finite differences",
        plans=False,
    )
    fd_step: float | None = option(
        None,
        "Step of the finite differences, relative to the gradient, or absolute where it is fixed (default: 0.001; "
        "0.003 where they are central).",
        check=between_0_and_1,
        noun="finite-difference step",
        record="config",
        title="step of the finite differences",
        plans=False,
    )
    reuse: str = option(
        "layer",
        "Which modules share structural tensors: none, or all layers'.",
        choices=REUSE,
        record="program",
        title="structural tensors shared by",
    )
    keep_adapters: bool = option(
        False,
        "Leave adapters of peft as layers of their own, which can descend as the group lora, instead of merging them.",
    )
    dtype: str | None = option(
        None,
        "Type that is stored and computed in: float32, bfloat16, which halves the folder and rounds the update, or "
        "float64 (default: float32, or float64 where the model is).",
        choices=DTYPES,
        verdict="is not supported",
        plans=False,
    )
    linear_attention: str = option(
        "linear",
        "Heads of the linear modules; softmax runs literally only.",
        choices=LINEAR_ATTENTION,
        record="config",
        title="heads of linear attention",
        plans=False,
    )
    optimizer: str = option(
        "sgd",
        "What a step is made of: sgd, the gradient; momentum, a running sum of gradients; normalized, either of them "
        "divided by its norm.",
        choices=OPTIMIZERS,
        record="config",
        title="optimiser",
    )
    normalize: str | None = option(
        None,
        "Whose norm a normalised step divides by: weight, that of each layer's gradient (default); all, one "
        "norm of all gradients.",
        choices=NORMALIZE,
        noun="normalisation",
        record="config",
        title="normalisation",
    )
    momentum: float | None = option(
        None,
        "Share of the running sum of gradients that a step keeps (default: 0.9 with momentum, else 0).",
        check=less_than_1,
        noun="momentum",
        record="config",
        title="momentum",
    )
    decay: float = option(
        0.0,
        "Share, times the learning rate, by which a step draws the weights back towards the stored ones.",
        check=zero_or_more,
        noun="decay",
        record="config",
        title="decay towards the stored weights",
    )

    def __post_init__(self) -> None:
        if self.dtype is not None:
            # A torch.dtype is taken too, by its name.
            object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        object.__setattr__(self, "descend", joined_groups(self.descend))
        if self.inner_lr is None:
            object.__setattr__(self, "inner_lr", NORMALISED_RATES.get(str(self.norm_of), RATE))
        if self.fd_step is None and self.scheme in FD_STEPS:
            object.__setattr__(self, "fd_step", FD_STEPS[self.scheme])
        for one in fields(self):
            value = getattr(self, one.name)
            if value is None and one.default is None:
                continue
            objection = objection_to(one, value)
            if objection is not None:
                raise option_error(objection)
        if self.descend == ALL:
            everything = [group for group in GROUPS if self.reaches(group) and (group != "lora" or self.keep_adapters)]
            object.__setattr__(self, "descend", ",".join(everything))
        unknown = [group for group in self.descend.split(",") if group not in GROUPS]
        if unknown:
            raise option_error(f"The parameter group {unknown[0]!r} is unknown; choose among {', '.join(GROUPS)}.")
        constant = [group for group in self.descend.split(",") if not self.reaches(group)]
        if constant:
            raise option_error(f"The group {constant[0]} receives no gradient with gradient paper; choose full.")
        if self.semantics == "paper-code" and self.gradient != "paper":
            raise option_error("The semantics paper-code has the paper's gradient; choose exact for the full one.")
        if self.semantics == "paper-code" and self.difference not in (None, "fixed"):
            raise option_error(
                f"The semantics paper-code has differences of a fixed step; choose exact for {self.difference}."
            )
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        """Raise `OptionError` for settings that the optimiser does not have."""
        if self.normalize is not None and self.optimizer != "normalized":
            raise option_error(
                f"The optimizer {self.optimizer} divides by no norm; leave normalize out, or choose normalized."
            )
        if self.optimizer == "sgd" and self.momentum:
            raise option_error("The optimizer sgd has no momentum; leave it out, or choose momentum or normalized.")
        if self.optimizer == "momentum" and self.momentum == 0:
            raise option_error("The momentum is 0, which is the optimizer sgd; choose that, or a larger momentum.")
        if self.semantics == "paper-code" and (self.optimizer != "sgd" or self.decay):
            raise option_error(
                "The semantics paper-code has plain steps; choose exact for another optimizer, or for decay."
            )

    @property
    def kept_momentum(self) -> float:
        """Return the share of the running sum of gradients that a step keeps; 0 where there is no such sum."""
        if self.momentum is None:
            return MOMENTUM * (self.optimizer == "momentum")
        return float(self.momentum)

    @property
    def norm_of(self) -> str | None:
        """Return whose norm a step divides by, one of `NORMALIZE`; None for steps that are not normalised."""
        if self.optimizer == "normalized":
            return self.normalize or NORMALIZE[0]
        return None

    @property
    def plain(self) -> bool:
        """Return True if a step subtracts the rate times the gradient, and nothing else."""
        return self.optimizer == "sgd" and not self.decay

    @property
    def groups(self) -> frozenset[str]:
        """Return the groups of parameters that descend."""
        return frozenset(self.descend.split(","))

    @property
    def scheme(self) -> str:
        """Return the finite-difference scheme that is chosen, or that semantics and gradient prescribe
        (construction.md, section 10)."""
        if self.gradient == "full":
            return self.difference or "central"
        prescribed = {"exact": "token", "paper-code": "fixed"}
        return self.difference or prescribed.get(self.semantics, "token")

    def reaches(self, group: str) -> bool:
        """Return True if a group of parameters receives a gradient."""
        return self.gradient == "full" or group not in FULL_ONLY

    def update_layers(self, n_layers: int) -> int:
        """Return L_up for a model of `n_layers`; raise `OptionError` when the model has fewer."""
        wanted = self.n_update_layers
        if wanted is None:
            wanted = n_layers
        if not 1 <= wanted <= n_layers:
            raise option_error(f"Cannot update {wanted} layers: the model has {n_layers}; choose 1 to {n_layers}.")
        return wanted

    def recorded(self, record: str = "") -> dict[str, Any]:
        """Return the options that the stored configuration states. record: those of one kind of `About.record`."""
        wanted = [name for name, about in ABOUT.items() if about.record and record in ("", about.record)]
        values = {name: getattr(self, name) for name in wanted}
        if "difference" in values:
            values["difference"] = self.scheme
        if "momentum" in values:
            values["momentum"] = self.kept_momentum
            values["normalize"] = self.norm_of
        return values


def joined_groups(given: object) -> str:
    """Return groups of parameters with commas between; a list, tuple or set of names is taken too."""
    if isinstance(given, str):
        return given
    if isinstance(given, set | frozenset):
        given = [*(group for group in (*GROUPS, ALL) if group in given), *sorted(map(str, given - {*GROUPS, ALL}))]
    if isinstance(given, list | tuple) and all(isinstance(name, str) for name in given):
        return ",".join(given)
    raise option_error(f"The option descend is {given!r}; pass names of parameter groups, such as 'values,ffn'.")


def objection_to(one: Field[Any], value: Any) -> str | None:
    """Return the sentence that refuses a value of an option; None if it is allowed."""
    about: About = one.metadata["about"]
    if about.choices and value not in about.choices:
        noun = about.noun or one.name.replace("_", " ")
        return f"The {noun} {value!r} {about.verdict}; choose one of {', '.join(about.choices)}."
    if about.check is None:
        return None
    objection = about.check(value)
    if objection is None:
        return None
    return f"The {about.noun or f'option {one.name}'} is {value}; {objection}."


def option_error(sentence: str) -> Exception:
    """Return an `OptionError`. It is imported here because the command reads this module without the package."""
    from tintc.errors import OptionError

    return OptionError(sentence)


ABOUT: dict[str, About] = {one.name: one.metadata["about"] for one in fields(Options)}
"""Every option, by name."""
FORMER: dict[str, str] = {about.former: name for name, about in ABOUT.items() if about.former}
"""Options that had another name, by that name."""


def renamed(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the present names of options; a former name stays where the present one is there too."""
    settings = dict(stated)
    for former, name in FORMER.items():
        if former in settings and name not in settings:
            settings[name] = settings.pop(former)
    return settings


def takes_options(function: Callable[..., T]) -> Callable[..., T]:
    """Return a function of (subject, options, ...) that also takes options one by one, by keyword or by position.

    None stands for an option's default. Its signature and docstring name every option; ``{options}`` in the docstring
    is where they stand.
    """

    own = list(inspect.signature(function).parameters.values())
    options = [
        inspect.Parameter(one.name, own[0].kind, default=one.default, annotation=one.type) for one in fields(Options)
    ]
    signature = inspect.Signature([own[0], *options, *own[2:]])

    def refuse_unknown(keywords: dict[str, Any]) -> None:
        from tintc import keywords as of_functions

        shorts = {about.short.replace("-", "_"): name for name, about in ABOUT.items() if about.short}
        of_functions.refuse_unknown(function.__name__, keywords, signature.parameters, shorts | FORMER)

    @wraps(function)
    def called(*values: Any, **keywords: Any) -> T:
        chosen: Options | None = None
        if len(values) > 1 and isinstance(values[1], Options):
            chosen = values[1]
            values = (values[0], *values[2:])
        if "options" in keywords:
            chosen = keywords.pop("options")
        for former in keywords.keys() & FORMER.keys():
            warnings.warn(f"The option {former} is called {FORMER[former]} now.", DeprecationWarning, stacklevel=2)
        keywords = renamed(keywords)
        refuse_unknown(keywords)
        arguments = signature.bind(*values, **keywords).arguments
        settings = {name: arguments.pop(name) for name in ABOUT if name in arguments}
        settings = {name: value for name, value in settings.items() if value is not None}
        # Some defaults depend on other options, so that they must be told together.
        chosen = Options(**settings) if chosen is None else replace(chosen, **settings)
        return function(arguments.pop(own[0].name), chosen, **arguments)

    called.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
    lines = [f"{name}: {about.help}" for name, about in ABOUT.items()]
    called.__doc__ = inspect.cleandoc(function.__doc__ or "").replace("{options}", "\n".join(lines))
    return called
