"""What kernels are told: where rows lie, how large a block holds one, how far to step, how products are taken."""

from __future__ import annotations

import torch
from torch import Tensor

from tintc.ir.functions import FiniteDifference

LARGEST = 1 << 15
"""Numbers of the widest vector that one program holds."""
TINY = 1e-18
"""Gradients smaller than this are stepped as if they were this large, which leaves a zero gradient zero. The square of
what is much smaller is zero in fp32."""
FUNCTIONS = ("relu", "relu2", "gelu", "gelu_tanh", "quick_gelu", "silu", "identity")
"""The activations that have kernels."""


def has_kernel(fn: str, x: Tensor) -> bool:
    """Return whether the kernels take that activation of vectors of that width."""
    return fn in FUNCTIONS and x.shape[-1] <= LARGEST


def as_rows(x: Tensor) -> Tensor:
    """Return ``[B, N, D]`` of ``[B, ..., D]``: a view where the vectors lie evenly, as those of a cut text do."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    if x.dim() == 2:
        x = x[None]
    return x.flatten(1, -2) if x.dim() > 3 else x


def block_of(width: int) -> tuple[int, int]:
    """Return (numbers of the block that holds a vector, warps that share it)."""
    block = max(16, 1 << (width - 1).bit_length())
    return block, min(16, max(1, block // 512))


def constants(difference: FiniteDifference) -> dict[str, float | bool]:
    """Return what a kernel has to know of a difference, as its constants."""
    return {
        "STEP": difference.eps,
        "PER_TOKEN": difference.per_token,
        "CENTRAL": difference.central,
        "TINY": TINY,
    }


def takes_tf32() -> bool:
    """Return whether PyTorch is told to take products of fp32 numbers in TF32, by its old switch or by its new one; the
    old cannot be read where the new was set."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def precision(x: Tensor) -> str:
    """Return how products are taken: those of fp32 numbers as PyTorch is told to take its own."""
    if x.device.type == "cpu":
        return "wide"  # Triton's interpreter multiplies bfloat16 as if it were integers
    if x.dtype == torch.float32 and takes_tf32():
        return "tf32"
    return "ieee"
