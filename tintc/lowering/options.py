"""The options of a compilation, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tintc.errors import OptionError
from tintc.ir.auxiliary.interpreter import DESCENDS, GROUPS
from tintc.ir.functions import SCHEMES, FiniteDifference
from tintc.ir.losses import LOSSES

SEMANTICS = ("exact", "paper-code")
LINEAR_ATTENTION = ("linear", "softmax")
REUSE = ("none", "layer")
DEFAULT_FD_STEP = 1e-3
DEFAULT_DESCEND = ",".join(group for group in GROUPS if group in DESCENDS)


@dataclass(frozen=True)
class Options:
    """Options of the simulated descent and of the layout.

    n_steps: gradient steps (N); n_update_layers: top layers that are updated (None: all); inner_lr: learning rate of
    gradients summed over train tokens; loss ``ce``, ``quad`` or ``mse``; descend: groups of parameters that are
    updated, of `GROUPS`, with commas between; semantics ``exact`` or ``paper-code``; fd_step: step of the finite
    differences, relative in ``exact`` and absolute in ``paper-code``; stack, shards: S and S' (None: chosen);
    head_width, heads: d_h and H_sim (None: the least that will do); max_length: longest text in tokens (None: the
    model's, at most 2048); reuse: which modules share structural tensors, ``none`` or ``layer`` (all);
    fd_scheme: of the finite differences, ``fixed`` or ``token`` (None: what the semantics prescribes);
    linear_attention: ``linear``, or ``softmax`` for heads of softmax attention in its place (Theorem C.2).
    """

    n_steps: int = 1
    n_update_layers: int | None = None
    inner_lr: float = 1e-4
    loss: str = "ce"
    descend: str = DEFAULT_DESCEND
    semantics: str = "exact"
    stack: int | None = None
    shards: int | None = None
    head_width: int | None = None
    heads: int | None = None
    max_length: int | None = None
    fd_step: float = DEFAULT_FD_STEP
    linear_attention: str = "linear"
    reuse: str = "layer"
    fd_scheme: str | None = None

    def __post_init__(self) -> None:
        counts = {
            "steps": self.n_steps,
            "stack": self.stack,
            "shards": self.shards,
            "head width": self.head_width,
            "heads": self.heads,
            "max length": self.max_length,
        }
        for name, count in counts.items():
            if count is not None and count < 1:
                raise OptionError(f"The option {name} is {count}; it must be at least 1.")
        if self.loss not in LOSSES:
            raise OptionError(f"The loss {self.loss!r} is unknown; choose one of {', '.join(LOSSES)}.")
        unknown = [group for group in self.descend.split(",") if group not in GROUPS]
        if unknown:
            raise OptionError(f"The parameter group {unknown[0]!r} is unknown; choose among {', '.join(GROUPS)}.")
        if self.semantics not in SEMANTICS:
            raise OptionError(f"The semantics {self.semantics!r} is unknown; choose one of {', '.join(SEMANTICS)}.")
        if self.linear_attention not in LINEAR_ATTENTION:
            kinds = ", ".join(LINEAR_ATTENTION)
            raise OptionError(f"The linear attention {self.linear_attention!r} is unknown; choose one of {kinds}.")
        if self.reuse not in REUSE:
            raise OptionError(f"The reuse {self.reuse!r} is unknown; choose one of {', '.join(REUSE)}.")
        if not (math.isfinite(self.inner_lr) and self.inner_lr >= 0):
            raise OptionError(f"The learning rate is {self.inner_lr}; it must be a finite number, zero or more.")
        if self.fd_scheme not in (None, *SCHEMES):
            raise OptionError(f"The difference {self.fd_scheme!r} is unknown; choose one of {', '.join(SCHEMES)}.")
        if self.semantics == "paper-code" and self.fd_scheme not in (None, "fixed"):
            raise OptionError(
                f"The semantics paper-code has differences of a fixed step; choose exact for {self.fd_scheme}."
            )
        if not 0 < self.fd_step < 1:
            raise OptionError(f"The finite-difference step is {self.fd_step}; it must lie between 0 and 1.")

    @property
    def groups(self) -> frozenset[str]:
        """Return the groups of parameters that descend."""
        return frozenset(self.descend.split(","))

    @property
    def difference(self) -> FiniteDifference:
        """Return the finite-difference scheme that is chosen, or that the semantics prescribes (construction.md,
        section 10)."""
        prescribed = "token" if self.semantics == "exact" else "fixed"
        return FiniteDifference(self.fd_scheme or prescribed, self.fd_step)

    def check_calibration(self, given: bool) -> None:
        """Raises `OptionError` for a calibration text of which nothing is made."""
        if given and self.linear_attention != "softmax":
            raise OptionError(
                "A calibration text is for softmax heads (--linear-attention softmax); choose them, or leave the text "
                "out."
            )

    def update_layers(self, n_layers: int) -> int:
        """Return L_up for a model of `n_layers`; raise `OptionError` when the model has fewer."""
        wanted = n_layers if self.n_update_layers is None else self.n_update_layers
        if not 1 <= wanted <= n_layers:
            raise OptionError(f"Cannot update {wanted} layers: the model has {n_layers}; choose 1 to {n_layers}.")
        return wanted
