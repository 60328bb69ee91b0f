"""The semantics of a simulator op: its interpreter on plain matrices and vectors, which defines what is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tintc.ir.core import Op
from tintc.ir.inputs import Inputs

Shape = tuple[int | str, ...]
"""Sizes of a tensor: ``B`` is the number of examples, ``T`` of tokens."""


@dataclass(frozen=True)
class Weights:
    """Weights in the interpreter: ``weight [dout, din]`` of a linear layer or gain ``[D]`` of a norm, and a bias.

    They have a leading batch dimension once they have been updated.
    """

    weight: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True)
class Interpretation:
    """Everything that the interpreter of an op may read: the simulator's tensors by state-dict name, in fp64, and the
    inputs.

    inner_lr: overrides every stored rate, ``[B]``, or None.
    """

    tensors: Mapping[str, Tensor]
    inputs: Inputs
    inner_lr: Tensor | None = None

    def rate(self, name: str, step: int) -> Tensor:
        """Return the learning rate of a parameter in a step: ``[]`` or ``[B]``."""
        if self.inner_lr is None:
            return self.tensors[f"rates.{name}"][step]
        return self.inner_lr

    def table(self, name: str) -> Tensor:
        """Return an embedding table, the head or its bias, by the name of the parameter."""
        return self.tensors[f"tables.{name}"]


class Semantics(Op):
    """The results of an op, and the inputs and the step that they depend on."""

    STEP_DEPENDENT: ClassVar[bool] = False
    """True if the result depends on the gradient step: on its learning rate or its train tokens. Common-subexpression
    elimination never merges such ops across steps."""

    def interpret(self, run: Interpretation, *operands: Any) -> Any:
        """Return the result (a tuple if there are several) from interpreter values of the operands."""
        raise NotImplementedError(self.opname)

    def check(self, inputs: Inputs, stored: Callable[[str], Tensor]) -> None:
        """Raise `InputError` for inputs that the op cannot take; `stored` gives the tensors of `SimOp.stored`."""

    def extra_capture_points(self) -> dict[str, Shape]:
        """Return what can be captured of the op besides its results: names of capture points, without pass and step,
        and shapes."""
        return {}
