"""The learning rates of a run, read before it: a pass that is under way waits for none of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tintc.ir.simulator import SimOp
from tintc.runtime.execution.rates import Rates
from tintc.runtime.execution.simulator import Simulator

RunRates = dict[tuple[str, int], Tensor | float]
"""The rate of every parameter in every step that a run updates it in."""


def read_rates(model: Simulator, ops: Iterable[SimOp], rates: Rates | None, as_tensors: bool) -> RunRates:
    """Return the rates of all descents among `ops`: those given, else the stored.

    A rate is a number if all examples share it, else a tensor ``[]`` or ``[B]``. All numbers come from the device in
    one transfer. as_tensors: no numbers are wanted, because autograd or a graph records the run.
    """
    wanted = [(name, op.step) for op in ops for name in op.rates()]
    tensors = {key: _rate(model, rates, *key) for key in wanted}
    if as_tensors or not tensors:
        return dict(tensors)
    width = max(rate.numel() for rate in tensors.values())
    rows = [rate.detach().reshape(-1).expand(width) if rate.numel() == 1 else rate for rate in tensors.values()]
    numbers = torch.stack([row.double() for row in rows]).tolist()
    return {
        key: row[0] if len(set(row)) == 1 else tensor
        for (key, tensor), row in zip(tensors.items(), numbers, strict=True)
    }


def _rate(model: Simulator, rates: Rates | None, name: str, step: int) -> Tensor:
    """Return a parameter's rate in a step: the one given, ``[B]``, or the stored, ``[]``."""
    given = None
    if rates is not None:
        given = rates.of(name, step)
    if given is None:
        return model.rate(name)[step]
    return given
