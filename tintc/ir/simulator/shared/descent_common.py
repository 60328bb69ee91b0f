"""Shared by the two descent modules: the weights they step, the stored rate they use, and what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tintc.ir.core import Value
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.literal_base import Applied
from tintc.ir.simulator.interface.semantics import Shape
from tintc.ir.simulator.interface.storage import Storage
from tintc.ir.simulator.shared.linear_common import unstacked
from tintc.ir.structure import TensorSpec


@dataclass(eq=False, kw_only=True)
class DescentOp(SimOp):
    """(W, dy, ...) -> W'. target: name of the weights, whose stored rate is used, times `rate_scale`.

    It shows the gradient of every part that descends, ``[B, *part]`` as the module sums it, and the update: minus the
    gradient times the rate.
    """

    STEP_DEPENDENT: ClassVar[bool] = True

    target: str
    rate_scale: float = 1.0

    def gradient(self, part: str, run: FusedRun, *operands: Any) -> Tensor:
        """Return the gradient of a part ``[B, *part]`` from the operands of the fused form, without `rate_scale`."""
        raise NotImplementedError(self.opname)

    def updated_weight(self) -> str:
        return self.target

    def stored(self, storage: Storage) -> dict[str, TensorSpec]:
        return {f"rates.{self.target}": storage.rates()}

    def rates(self) -> tuple[str, ...]:
        return (self.target,)

    def identity_operand(self) -> Value:
        return self.operands[0]

    def extra_capture_points(self) -> dict[str, Shape]:
        kinds = ("gradients", "updates")
        return {
            f"{kind}.{self.target}.{part}": ("B", *dims)
            for kind in kinds
            for part, dims in self.updated_parts().items()
        }

    def show_fused(self, name: str, run: FusedRun, *operands: Any) -> Tensor:
        gradient = self.gradient(name.rpartition(".")[2], run, *operands) * self.rate_scale
        if name.startswith("gradients."):
            return gradient
        rate = run.rate(self.target, self.step)
        if isinstance(rate, Tensor):
            rate = _per_example(rate, gradient)
        return gradient * -rate

    def show_literal(self, name: str, layout: Layout, applied: Sequence[Applied]) -> Tensor:
        """Return a gradient or update, ``[B, *part]``.

        The module's blocks that have a rate give what is subtracted from the prefixes, one tile after the other.
        """
        stepped = [application for application in applied if application.rate is not None]
        tiles = [application.new[:, : layout.n_prefixes] for application in stepped]
        columns = 1
        if len(tiles) > 1:
            columns = layout.tiles(self.operands[0].type.dims[-1])
        rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
        summed = unstacked(layout, self.operands[0].type, rows)[name.rpartition(".")[2]]
        if name.startswith("gradients."):
            return summed * -self.rate_scale
        rate = stepped[0].rate
        assert rate is not None
        return summed * _per_example(rate, summed)


def _per_example(rate: Tensor, value: Tensor) -> Tensor:
    """Return a rate ``[]`` or ``[B]`` in the shape and dtype that multiply ``value [B, ...]``."""
    return rate.to(value.dtype).reshape(-1, *[1] * (value.dim() - 1))
