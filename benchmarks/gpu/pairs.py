"""Each kernel alone beside PyTorch's operators: operations of a simulator, on random numbers, in the sizes that passes
have. What is measured here is what decides which of them runs (`tintc/ir/simulator/kernels/measured.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.models import RATE, Shape
from benchmarks.gpu.setup import Setup
from tintc.ir.core import Value
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.interface.fused_base import FusedWeights, Pending
from tintc.ir.simulator.kernels.choice import TABLE, chosen, using
from tintc.ir.simulator.kernels.grouped import grouped_product
from tintc.ir.simulator.kernels.measured import dtype_name
from tintc.runtime.execution.fused.batches import sizes_of
from tintc.runtime.execution.fused.executor import FusedExecutor
from tintc.runtime.execution.fused.planner import make_plan

OPS = {
    "AttentionBackward": "attention_backward",
    "NormBackward": "norm_backward",
    "ActivationBackward": "activation_backward",
    "GateBackward": "gate_backward",
    "LinearForward": "two_products",
    "LinearBackward": "two_products",
    "LossGradient": "loss_gradient",
}
"""Kernels by the op whose fused form asks for them."""
EXPERTS = (64, 8)
"""Experts of a mixture, and how many of them each token chooses."""
TIMES = 20
"""Runs between two looks at the clock: an operation takes less than a launch."""


@dataclass
class Pair:
    """One operation, by a kernel or by PyTorch's operators. size: in words; run: it; reads: what it looks at."""

    kernel: str
    size: str
    run: Callable[[], Any]
    reads: list[Tensor]


@torch.no_grad()
def measure(setup: Setup, name: str, points: tuple[tuple[int, int], ...]) -> None:
    """Note the seconds of every operation both ways, of every size and dtype, and how far apart the results are."""
    for dtype in (torch.bfloat16, torch.float32):
        if not setup.left:
            return
        shape = setup.make(name, dtype)
        for batch, length in points:
            for pair in pairs(setup, shape, batch, length):
                with setup.trying("pairs", model=name, kernel=pair.kernel, dtype=dtype_name(dtype), size=pair.size):
                    _measure(setup, name, dtype, pair)


def _measure(setup: Setup, name: str, dtype: torch.dtype, pair: Pair) -> None:
    if not setup.left:
        return
    other = TABLE[pair.kernel].other
    times = 1 if setup.tiny else TIMES
    with using("torch", pair.kernel):
        right = _numbers(pair.run())
        plain = setup.median(lambda: [pair.run() for _ in range(times)], 3) / times
    with using(other, pair.kernel):
        # Where a kernel cannot run, as on a CPU, nothing is measured, and no verdict follows.
        ran = chosen(pair.kernel, *pair.reads)
        apart = float((_numbers(pair.run()) - right).abs().max() / right.abs().max())
        taken = setup.median(lambda: [pair.run() for _ in range(times)], 3) / times
    given = {"model": name, "kernel": pair.kernel, "dtype": dtype_name(dtype), "size": pair.size}
    setup.note("pairs", **given, torch=plain, other=taken, apart=apart, ran=ran)


def _numbers(result: Any) -> Tensor:
    """Return all numbers of a result as one vector."""
    if isinstance(result, tuple):
        return torch.cat([part.flatten() for part in result]).float()
    return result.flatten().float()


def pairs(setup: Setup, shape: Shape, batch: int, length: int) -> Iterator[Pair]:
    """Yield one operation of every kind that a program has, on random numbers in a pass of that size, and the grouped
    product of a mixture's experts."""
    sim: Any = shape.sim
    inputs = sim.resolve(setup.texts(batch, length, sim.config.vocab_size))
    plan = make_plan(sim.program, ("logits",), sizes_of(inputs, sim.config.vocab_size), "lazy")
    run = FusedExecutor(sim, inputs, plan, None, {})
    known: set[str] = set()
    for op in plan.ops:
        kind = type(op).__name__
        kernel = OPS.get(kind)
        if kernel is None or kind in known or (kernel == "two_products" and not _carries(op, plan.lazy)):
            continue
        known.add(kind)
        read = plan.sizes.read(op, plan.lengths[op])
        operands = [_random(sim, op, value, batch, read, length // 2) for value in plan.operands(op)]
        sizes = " x ".join(str(size) for size in (batch, read, *op.operands[-1].type.dims))
        yield Pair(kernel, f"{kind} of {sizes}", lambda op=op, given=operands: op.fused(run, *given), _reads(operands))
    yield _experts(setup, sim, batch * length // 2)


def _carries(op: SimOp, lazy: set[SimOp]) -> bool:
    """Return whether an op reads weights that a pending update has changed."""
    return any(descent.results[0] == op.operands[0] for descent in lazy)


def _random(sim: Any, op: SimOp, value: Value, batch: int, read: int, train: int) -> Any:
    """Return random numbers for an operand; weights with a pending update of `train` tokens."""
    if not value.type.is_weights:
        return torch.randn(batch, read, *value.type.dims, device=sim.device).to(sim.dtype)
    parts = value.type.parts
    dims = value.type.dims
    bias = torch.randn(dims[0], device=sim.device).to(sim.dtype) if "bias" in parts else None
    if len(dims) == 1:
        return FusedWeights(torch.ones(dims, device=sim.device, dtype=sim.dtype), bias)
    weight = torch.randn(dims, device=sim.device).to(sim.dtype)
    dy, x = (torch.randn(batch, train, width, device=sim.device).to(sim.dtype) for width in dims)
    source = op.operands[1]
    return FusedWeights(weight, bias, (Pending(dy, x, source, int(bias is not None), -RATE),))


def _reads(operands: list[Any]) -> list[Tensor]:
    """Return the tensors among operands, those of weights too."""
    tensors = [value for value in operands if isinstance(value, Tensor)]
    for value in operands:
        if isinstance(value, FusedWeights) and value.pending and value.weight is not None:
            tensors += [value.weight, value.pending[0].dy]
    return tensors


def _experts(setup: Setup, sim: Any, tokens: int) -> Pair:
    """Return the product of tokens with the experts that they have chosen."""
    width, wide = (16, 24) if setup.tiny else (1024, 768)
    count, chosen_by_each = (4, 2) if setup.tiny else EXPERTS
    x = torch.randn(tokens * chosen_by_each, width, device=sim.device).to(sim.dtype)
    weight = torch.randn(count, wide, width, device=sim.device).to(sim.dtype)
    keys = torch.randint(0, count, (len(x),), generator=torch.Generator().manual_seed(0)).to(sim.device)
    size = f"{len(x)} vectors of {width}, {count} experts of {wide}"
    return Pair("grouped_product", size, lambda: grouped_product(x, weight, keys, False), [x, weight])
