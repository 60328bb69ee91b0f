"""Compile kernels for an H100 or H200 (sm_90), for which Triton needs no GPU, and print what each takes, as JSON.

Run by `test_compiled_kernels.py` in a process of its own, since the interpreter, which other tests use, is chosen when
Triton is imported.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tintc.ir.functions import FiniteDifference
from tintc.ir.simulator.kernels import rows
from tintc.ir.simulator.kernels import triton_attention as attention
from tintc.ir.simulator.kernels import triton_difference as difference
from tintc.ir.simulator.kernels import triton_norm as norm
from tintc.ir.simulator.kernels import triton_products as products

TOKEN, CENTRAL = FiniteDifference("token", 0.01), FiniteDifference("central", 0.01)
compiled: list[dict[str, Any]] = []


class NoGpu:
    """What Triton asks its driver when it compiles and does not launch."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compiling(kernel: JITFunction[Any], grid: Any) -> Callable[..., None]:
    """Return what stands in for a launch."""

    def compile(*args: Any, **kwargs: Any) -> None:
        made = kernel.run(*args, grid=grid, warmup=True, **kwargs)
        taken = {"kernel": kernel.__name__, "shared": made.metadata.shared, "stack": _stack(made.asm["cubin"])}
        compiled.append(taken)

    return compile


def _stack(cubin: bytes) -> int:
    """Return the bytes that each thread has spilt to memory, by the tool that comes with Triton."""
    file = Path(sys.argv[1]) / "kernel.cubin"
    file.write_bytes(cubin)
    tool = Path(str(triton.__file__)).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    shown = subprocess.run([tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True).stdout
    return max(int(size) for size in re.findall(r"STACK:(\d+)", shown))


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def attentions(dtype: torch.dtype) -> None:
    """Widths of heads, what can be done to scores, and a single query of a single head."""
    for width in (64, 128, 256):
        q, k = empty(2, 8, 100, width, dtype=dtype), empty(2, 4, 100, width, dtype=dtype)
        attention.values_gradient(q, k, q, attention.Scores(0.3))
        if width == 64:
            positions = empty(2, 100, dtype=torch.int64)
            mask, slopes = empty(2, 1, 100, 100, dtype=torch.bool), empty(8, dtype=torch.float32)
            every = attention.Scores(0.3, 2.0, mask, slopes, positions, empty(8, dtype=dtype))
            attention.values_gradient(q, k, q, every)
            one = q[:1, :1, :1]
            attention.values_gradient(one, k[:1, :1], one, attention.Scores(0.3))


def others(dtype: torch.dtype) -> None:
    x = empty(2, 7, 768, dtype=dtype)
    for fn in rows.FUNCTIONS:
        difference.activation_backward(fn, TOKEN, x, x)
    difference.gate_backward("silu", TOKEN, x, x, x)
    norm.norm_backward("layer", 1, 1e-5, TOKEN, x, x, empty(1, 768, dtype=torch.float32))
    norm.norm_backward("rms", 2, 1e-5, CENTRAL, x, x, None)
    weight, update = empty(3072, 768, dtype=dtype), empty(2, 50, 3072, dtype=dtype)
    products.two_products(x, weight.t(), weight[:, 0], empty(2, 7, 50, dtype=dtype), update, 1, -0.3)


def main() -> None:
    driver.set_active(NoGpu())
    JITFunction.__getitem__ = compiling
    torch.backends.cuda.matmul.allow_tf32 = sys.argv[3] == "tf32"
    dtype = getattr(torch, sys.argv[2])
    attentions(dtype)
    others(dtype)
    print(json.dumps(compiled))


if __name__ == "__main__":
    main()
