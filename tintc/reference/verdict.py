"""The result of `verify`, and how far apart a simulator and the reference may be."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

LEAST_COSINE = 0.99
"""Of the logits' update, and of all gradients together, to the reference's."""


@dataclass(frozen=True)
class Tolerances:
    """Largest relative errors, in the Euclidean norm.

    logits: of the logits before; gradient: of each parameter's gradient. Logits after may differ by both: `logits` of
    their size and `gradient` of the update's. floor: part of the whole gradient's norm that is let pass in any
    parameter, because rounding does not shrink with a gradient that nearly cancels.
    """

    logits: float
    gradient: float
    floor: float

    @classmethod
    def of(cls, dtype: torch.dtype, scheme: str, linear_attention: str = "linear") -> Tolerances:
        """Return those for a simulator of that dtype.

        A constant step of differences is noisy in short types (construction.md, section 6.1); softmax heads are about
        sqrt(u) of the scores' size off in every module (construction.md, section 12). In bfloat16 the logits of tiny
        models are 0.007 off, the update up to 0.04, and a parameter's gradient 0.01, where ReLUs switch up to 0.16.
        """
        if linear_attention == "softmax":
            if dtype == torch.float64:
                return cls(1e-5, 1e-3, 1e-5)
            return cls(5e-2, 0.3, 1e-2)
        if dtype == torch.float64:
            return cls(1e-9, 1e-6, 1e-9)
        if dtype == torch.float32:
            gradient = {"token": 1e-2, "central": 1e-2, "fixed": 0.3}
            return cls(1e-4, gradient[scheme], 1e-5)
        return cls(3e-2, 0.2, 2e-2)


@dataclass(frozen=True)
class Compared:
    """A simulated gradient beside the reference's, with the same approximations, and beside autograd's, without any."""

    cosine: float
    error: float
    cosine_autograd: float
    error_autograd: float
    allowed: float
    size: float


@dataclass(frozen=True)
class Verdict:
    """The result of `verify`. problems: sentences, none if the simulator does what its options say; gradient: all
    parameters together; errors as in `Tolerances`, that of the update relative to the update; update_cosine: of the
    logits' update to the reference's."""

    problems: list[str]
    tolerances: Tolerances
    logits_before_error: float
    logits_after_error: float
    update_error: float
    update_cosine: float
    gradient: Compared
    parameters: dict[str, Compared]
    executor: str
    dtype: str
    reference_dtype: str
    tokens: int
    train_tokens: int

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return plain values; numbers that are not finite are null.

        cosine_exact, error_exact: the former names of cosine_autograd and error_autograd.
        """
        values = {"ok": self.ok, **_finite(asdict(self))}
        for shown in (values["gradient"], *values["parameters"].values()):
            shown |= {"cosine_exact": shown["cosine_autograd"], "error_exact": shown["error_autograd"]}
        return values


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
