"""`calibrate_softmax_heads`: realise linear attention by softmax heads (Theorem C.2), their constants calibrated on a
text.

See construction.md, section 12. Every module gets R of its own, from the scores s that it has on the text: it balances
the root mean square of the truncation ``s^2 / 2R`` against the rounding ``u R``: ``R = mean(s^4)^(1/4) / sqrt(2u)``. To
balance the bounds would give ``R = max|s| / sqrt(u)``, which makes most scores less accurate for the sake of the
largest: on stories260K in fp32, where the largest score is 4 times this mean in the median module and 10 times in the
worst, logits are then 4 % off instead of 0.7 %. Lemma C.3 asks for ``|s| <= R``, and R is 2900 times the mean in fp32,
7e7 times in fp64.

Heads with scores 0 and 1 (biases) get ``1 / sqrt(2u)``. M is ``n / u`` for all: what it leaves of the error is then
below rounding. All are rounded to powers of two, so that modules share blocks and dividing by R is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tintc.errors import OptionError
from tintc.ir import simulator as sim
from tintc.ir.core import Op, Program
from tintc.ir.inputs import resolve_inputs
from tintc.ir.lazy import Lazy
from tintc.ir.simulator.interface.interpreter import interpret
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.softmax_heads import is_linear
from tintc.lowering.emission.emit import specs
from tintc.lowering.passes.plan_layout import layout_of

PRECISE = (torch.float32, torch.float64)
TOKENS = 128
"""Tokens of the calibration text that are used, if the simulator takes so many."""


def check_precise(dtype: torch.dtype) -> None:
    """Raise `OptionError` for short dtypes: the heads' error is about sqrt(u) of the largest score, 6 % in bfloat16."""
    if dtype not in PRECISE:
        name = str(dtype).removeprefix("torch.")
        raise OptionError(
            f"Linear attention by softmax heads needs float32 or float64, and this simulator would be {name}; choose "
            "the dtype float32."
        )


def calibrate_softmax_heads(
    program: Program, source: Mapping[str, Tensor], lr: float, dtype: torch.dtype, ids: Tensor
) -> Program:
    """Return the program with `softmax` on every op that has linear attention, and the attribute ``softmax_unit``.

    program: planned, with memory slots; source: the auxiliary's tensors; dtype: of the simulator; ids ``[T]``: the
    calibration text, whose first half is trained on. Raises `OptionError` where training blows up on it.
    """
    check_precise(dtype)
    layout = layout_of(program)
    unit = torch.finfo(dtype).eps / 2
    sink = _power(layout.sim_seq_len / unit)
    constant = _power((2 * unit) ** -0.5)
    sizes = score_sizes(program, source, lr, dtype, ids)
    ops: list[Op] = []
    for op in program.ops:
        assert isinstance(op, sim.SimOp)
        if any(is_linear(block) for block in op.structure(layout).values()):
            size = sizes.get(op, 0.0)
            varied = constant
            if size:
                varied = _power(size * (2 * unit) ** -0.5)
            op = replace(op, softmax=(varied, constant, sink))
        ops.append(op)
    attributes = program.attributes | {"softmax_unit": unit}
    return replace(program, ops=ops, attributes=attributes).verify()


def score_sizes(
    program: Program, source: Mapping[str, Tensor], lr: float, dtype: torch.dtype, ids: Tensor
) -> dict[Op, float]:
    """Return `mean_size` of every op's linear heads on a text, by the interpreter."""
    layout = layout_of(program)
    sizes: dict[Op, float] = {}

    def watch(op: sim.SimOp, run: Interpretation, operands: tuple[Any, ...]) -> None:
        sizes[op] = mean_size(op.scores(layout, run, *operands))

    stored = {name: spec for name, spec in specs(program, source, lr).items() if not name.startswith("structure.")}
    tensors = Lazy(stored, lambda name: stored[name].build())
    inputs = resolve_inputs(ids[None], semantics=program.attributes["semantics"])
    with torch.no_grad():
        interpret(program, tensors, inputs, watch=watch, dtype=dtype)
    if not all(math.isfinite(size) for size in sizes.values()):
        raise OptionError(f"The learning rate {lr} is too large for the calibration text; choose a smaller one.")
    return sizes


def mean_size(scores: Iterable[Tensor]) -> float:
    """Return ``mean(s^4)^(1/4)`` over the scores that are not zero.

    It is 0 if all are zero, and not finite if some are not.
    """
    largest = 0.0
    total = 0.0  # in units of largest^4, so that no power over- or underflows
    count = 0
    for s in scores:
        if not s.numel():
            continue
        top = float(s.abs().max())
        if not math.isfinite(top):
            return top
        if top:
            scale = max(top, largest)
            total = total * (largest / scale) ** 4 + float((s / top).pow(4).sum()) * (top / scale) ** 4
            largest = scale
            count += int(s.count_nonzero())
    if not count:
        return 0.0
    return largest * (total / count) ** 0.25


def _power(value: float) -> float:
    """Return the power of two nearest to a positive number."""
    return 2.0 ** round(math.log2(value))
