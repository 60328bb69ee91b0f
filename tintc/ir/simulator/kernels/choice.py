"""Which kernel runs where there are two: PyTorch's operators, or one of ours in Triton. One table.

A kernel never changes what is computed, only how fast. Ours read numbers in bfloat16 or float32, compute in float32,
and have no derivatives: where autograd records, on a CPU, and without Triton, PyTorch's operators run, whatever the
table says.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from tintc.errors import OptionError

VARIABLE = "TINTC_KERNELS"
WAYS = ("torch", "triton")
DTYPES = (torch.bfloat16, torch.float32)
READABLE = {"cpu"}
"""Types of device whose tensors the host reads without waiting."""


class Choice(NamedTuple):
    """What runs, and why."""

    way: str
    reason: str


UNMEASURED = "no GPU has measured it yet (benchmarks/gpu.sh does)"
TABLE = {
    "attention_backward": Choice("torch", UNMEASURED),
    "norm_backward": Choice("torch", UNMEASURED),
    "activation_backward": Choice("torch", UNMEASURED),
    "gate_backward": Choice("torch", UNMEASURED),
}
"""Our kernels by name."""

_asked: list[dict[str, str]] = []


def chosen(name: str, *tensors: Tensor) -> bool:
    """Return whether our kernel of that name runs on these tensors."""
    if _way(name) != "triton" or torch.is_grad_enabled():
        return False
    return all(_can_run(tensor) for tensor in tensors)


def readable(x: Tensor) -> bool:
    """Return whether the host may look at numbers: elsewhere a run must not depend on them but on its device."""
    return x.device.type in READABLE


def ways() -> tuple[str, ...]:
    """Return the way that each kernel of the table is asked to run now."""
    return tuple(_way(name) for name in TABLE)


def _can_run(tensor: Tensor) -> bool:
    if tensor.dtype not in DTYPES or not has_triton():
        return False
    return tensor.is_cuda or interpreted()


@cache
def has_triton() -> bool:
    """Return whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter, slowly and on a CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _way(name: str) -> str:
    for asked in reversed(_asked):
        if name in asked:
            return asked[name]
    return _from_environment(os.environ.get(VARIABLE, "")).get(name, TABLE[name].way)


@cache
def _from_environment(text: str) -> dict[str, str]:
    """Return what the environment's variable asks for: one way for all, or ``name=way,...``."""
    if not text:
        return {}
    if "=" not in text:
        return _checked(dict.fromkeys(TABLE, text))
    entries = [entry.partition("=") for entry in text.split(",")]
    return _checked({name: way for name, _, way in entries})


def _checked(asked: dict[str, str]) -> dict[str, str]:
    for name, way in asked.items():
        if name not in TABLE or way not in WAYS:
            raise OptionError(
                f"{VARIABLE} asks for {name}={way}; there are the kernels {', '.join(TABLE)}, each with one of "
                f"{' and '.join(WAYS)}."
            )
    return asked


@contextmanager
def using(way: str, *names: str) -> Iterator[None]:
    """Yield in a block in which these kernels (without names: all) run that way: ``torch`` or ``triton``.

    Raises `OptionError` for a kernel or a way that does not exist.
    """
    _asked.append(_checked(dict.fromkeys(names or TABLE, way)))
    try:
        yield
    finally:
        _asked.pop()
