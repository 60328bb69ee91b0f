"""The base of auxiliary ops: an evaluation and an approximate pullback."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tintc.ir.core import Op
from tintc.ir.functions import FiniteDifference
from tintc.ir.inputs import Inputs

Gradients = dict[str, Tensor]
"""Parameter name -> gradient ``[B, *shape]``, one per example of the batch."""

Pulled = tuple[tuple[Tensor | None, ...], Gradients]
"""What a pullback gives: gradients of the operands (None: dropped or zero) and of the parameters that descend."""


@dataclass(frozen=True)
class Context:
    """Everything that an op may read besides its operands.

    tensors: parameter name -> tensor ``shape`` or, once updated, ``[B, *shape]``; difference: the finite-difference
    scheme of the pullbacks of norms and activations; step: whose train tokens pullbacks sum over; full: whether scores
    of attention and routing are differentiated, or constants.
    """

    tensors: Mapping[str, Tensor]
    inputs: Inputs
    difference: FiniteDifference
    step: int = 0
    full: bool = False

    @property
    def train(self) -> Tensor:
        """Return the step's train tokens, ready to broadcast: ``[B, T, 1]``."""
        return self.inputs.train_mask(self.step)[..., None]

    def parameter(self, name: str) -> Tensor:
        """Return a parameter by its name in the program."""
        return self.tensors[name]

    def optional(self, name: str) -> Tensor | None:
        """Return a parameter that an op may lack; None for an empty name."""
        if not name:
            return None
        return self.tensors[name]


@dataclass(eq=False, kw_only=True)
class AuxOp(Op):
    """An op of the auxiliary dialect.

    layer: index of the decoder layer it belongs to, -1 outside the layers; role: what it is for within its layer. Both
    are set by the `roles` pass.
    """

    GROUPS: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Role -> attribute that names a parameter -> the group to which that parameter belongs."""

    layer: int = -1
    role: str = ""

    def parameters(self) -> dict[str, str]:
        """Return the names of the parameters that this op has, by field."""
        names = {key: getattr(self, key, "") for key in ("weight", "bias", "table")}
        return {key: name for key, name in names.items() if name}

    def in_groups(self, groups: Collection[str]) -> set[str]:
        """Return the fields that name parameters of these groups."""
        members = self.GROUPS.get(self.role, {})
        return {key for key in self.parameters() if members.get(key) in groups}

    def evaluate(self, context: Context, *operands: Any) -> Tensor:
        """Return the value, ``[B, T, width]`` from operands of such shapes."""
        raise NotImplementedError(self.opname)

    def pullback(self, context: Context, dy: Tensor, *operands: Any) -> Pulled:
        """Return (gradients of the operands, gradients of the parameters), approximate as in the construction."""
        raise NotImplementedError(self.opname)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x W^T + b`` for shared ``W [dout, din]`` or per-example ``W [B, dout, din]``."""
    y = x @ weight.transpose(-1, -2)
    if bias is None:
        return y
    if bias.dim() == 2:
        return y + bias[:, None]
    return y + bias
