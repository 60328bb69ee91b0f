"""Which kernel runs where there are two: PyTorch's operators, or one of ours in Triton, or a library's. One table.

What was measured on a GPU decides (`measured.py`); of what was not, the table here. A kernel never changes what is
computed, only how fast. Kernels read numbers in bfloat16 or float32, compute in float32, and have no derivatives: where
autograd records, and where a kernel cannot run, PyTorch's operators run, whatever the table says.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.errors import OptionError
from tintc.ir.simulator.kernels.measured import dtype_name, measured

VARIABLE = "TINTC_KERNELS"
WAYS = ("torch", "triton", "library")
DTYPES = (torch.bfloat16, torch.float32)
READABLE = {"cpu"}
"""Types of device whose tensors the host reads without waiting."""


class Choice(NamedTuple):
    """What runs, why, and what else there is: a kernel in Triton, or one of a library."""

    way: str
    reason: str
    other: str = "triton"


UNMEASURED = "no GPU has measured it yet (benchmarks/gpu.sh does)"
TABLE = {
    "attention_backward": Choice("torch", UNMEASURED),
    "norm_backward": Choice("torch", UNMEASURED),
    "activation_backward": Choice("torch", UNMEASURED),
    "gate_backward": Choice("torch", UNMEASURED),
    "two_products": Choice("torch", UNMEASURED),
    "grouped_product": Choice(
        "library",
        "torch's grouped_mm multiplies each vector once, PyTorch's other operators with every expert",
        "library",
    ),
    "loss_gradient": Choice(
        "torch", "on a CPU 0.42 s against 4.5 s of linear_cross_entropy: 512 positions, 49152 words", "library"
    ),
    "recurrence": Choice("torch", UNMEASURED, "library"),
}
"""Kernels by name, as they are used where none was measured."""

_asked: list[dict[str, str]] = []


def chosen(name: str, *tensors: Tensor) -> bool:
    """Return whether the kernel of that name runs on these tensors, in place of PyTorch's operators.

    They must be of one dtype: a kernel's products have factors of one.
    """
    if torch.is_grad_enabled():
        return False
    way = entry(name, tensors[0]).way
    if way == "torch":
        return False
    if any(tensor.dtype not in DTYPES or tensor.dtype != tensors[0].dtype for tensor in tensors):
        return False
    if way == "triton":
        return has_triton() and all(tensor.is_cuda or interpreted() for tensor in tensors)
    return _has_library(name, tensors)


def _has_library(name: str, tensors: tuple[Tensor, ...]) -> bool:
    """Return whether the library that has a kernel is there, and takes these tensors."""
    if name == "recurrence":
        return has_module("fla") and all(tensor.is_cuda and tensor.dtype == torch.bfloat16 for tensor in tensors)
    if name == "loss_gradient":
        return hasattr(F, "linear_cross_entropy") and not torch.is_inference_mode_enabled()
    even = all(size % 8 == 0 for tensor in tensors for size in tensor.shape[1:])
    return hasattr(F, "grouped_mm") and even and all(tensor.dtype == torch.bfloat16 for tensor in tensors)


@cache
def has_module(name: str) -> bool:
    """Return whether a package is installed."""
    return importlib.util.find_spec(name) is not None


def readable(x: Tensor) -> bool:
    """Return whether the host may look at numbers: elsewhere a run must not depend on them but on its device."""
    return x.device.type in READABLE


def entry(name: str, x: Tensor) -> Choice:
    """Return what runs for numbers like these: what is asked for, else, on a GPU, what was measured to be faster in
    their dtype, else what the table has."""
    known = TABLE[name]
    asked = _asked_way(name)
    if asked:
        return Choice(asked, "asked for", known.other)
    verdict = measured().get((name, dtype_name(x.dtype)))
    if verdict is None or not x.is_cuda:
        return known
    return Choice(known.other if verdict.runs else "torch", verdict.reason, known.other)


def ways() -> tuple[str, ...]:
    """Return the way that each kernel is asked to run now; empty where the table decides."""
    return tuple(_asked_way(name) for name in TABLE)


def has_triton() -> bool:
    """Return whether Triton is installed."""
    return has_module("triton")


def interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter, slowly and on a CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _asked_way(name: str) -> str:
    """Return the way that a kernel is asked to run by a block or by the environment; empty if by neither."""
    for asked in reversed(_asked):
        if name in asked:
            return asked[name]
    return _from_environment(os.environ.get(VARIABLE, "")).get(name, "")


@cache
def _from_environment(text: str) -> dict[str, str]:
    """Return what the environment's variable asks for: one way for all that have it, or ``name=way,...``."""
    if not text:
        return {}
    if "=" not in text:
        return _checked(_all(text))
    entries = [entry.partition("=") for entry in text.split(",")]
    return _checked({name: way for name, _, way in entries})


def _all(way: str) -> dict[str, str]:
    """Return that way for all kernels that have it; for all if none has it, which is refused then."""
    having = [name for name, choice in TABLE.items() if way in ("torch", choice.other)]
    return dict.fromkeys(having or TABLE, way)


def _checked(asked: dict[str, str]) -> dict[str, str]:
    for name, way in asked.items():
        if name not in TABLE or way not in ("torch", TABLE[name].other):
            known = ", ".join(f"{kernel} ({choice.other})" for kernel, choice in TABLE.items())
            raise OptionError(
                f"{VARIABLE} asks for {name}={way}; there are the kernels {known}, each also as torch's operators."
            )
    return asked


@contextmanager
def using(way: str, *names: str) -> Iterator[None]:
    """Yield in a block in which these kernels run that way, one of `WAYS`; without names, all that have it.

    Raises `OptionError` for a kernel or a way that does not exist.
    """
    asked = _all(way)
    if names:
        asked = dict.fromkeys(names, way)
    _asked.append(_checked(asked))
    try:
        yield
    finally:
        _asked.pop()
