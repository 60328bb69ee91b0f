"""The options of a compilation, each written once.

A field of `Options`, with its default and what `About` says of it, makes an argument of `tintc.compile`, an option of
the commands `compile`, `plan` and `opt`, a field of the stored configuration, and a row of the model card and of the
reports. To add an option, add a field here and read it in the pass that it is for.

Nothing is imported when this module is but the facts and conflicts beside it: the command reads it before it imports
the package, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tintc.option_conflicts import conflict_of, joined_groups, objection_to, option_error
from tintc.option_facts import (
    ALL,
    DESCENDS,
    DTYPES,
    FD_STEPS,
    FULL_ONLY,
    GRADIENTS,
    GROUPS,
    LINEAR_ATTENTION,
    LOSSES,
    MOMENTUM,
    NORMALISED_RATES,
    NORMALIZE,
    OPTIMIZERS,
    RATE,
    REUSE,
    SCHEMES,
    SEMANTICS,
    About,
    between_0_and_1,
    finite_rate,
    less_than_1,
    option,
    size,
    steps,
    whole,
    zero_or_more,
)


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
    try_anyway: bool = option(
        False,
        "Try a model even if it is known that its type does not compile, instead of refusing it at once.",
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
        conflict = conflict_of(self)
        if conflict is not None:
            raise option_error(conflict)

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
