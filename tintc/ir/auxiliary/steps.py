"""Normalised steps in the auxiliary dialect: what a gradient is multiplied by before the learning rate."""

from __future__ import annotations

from torch import Tensor

from tintc.ir.auxiliary.base import AuxOp, Gradients
from tintc.ir.core import Program

FLOOR = 1e-24
"""What is added to a squared norm, so that a gradient of zero makes a step of zero."""


def step_factors(program: Program, gradients: Gradients, norm_of: str | None) -> dict[str, Tensor | float]:
    """Return the factor of every gradient ``[B, *shape]``, of a shape that multiplies it.

    norm_of: ``weight``, 1 / norm of the gradients of one op's parameters together; ``all``, 1 / norm of all gradients;
    None, 1.
    """
    if norm_of is None:
        return dict.fromkeys(gradients, 1.0)
    if norm_of == "all":
        return _factors(gradients)
    factors: dict[str, Tensor | float] = {}
    for op in program.ops:
        assert isinstance(op, AuxOp)
        own = {name: gradients[name] for name in op.parameters().values() if name in gradients}
        if not own or factors.keys() >= own.keys():
            continue
        factors |= _factors(own)
    return factors


def _factors(gradients: Gradients) -> dict[str, Tensor | float]:
    """Return 1 over the norm of these gradients together, shaped for each."""
    total = sum((gradient.flatten(1).square().sum(1) for gradient in gradients.values()), start=FLOOR)
    assert isinstance(total, Tensor)
    return {name: total.rsqrt().reshape(-1, *[1] * (g.dim() - 1)) for name, g in gradients.items()}
