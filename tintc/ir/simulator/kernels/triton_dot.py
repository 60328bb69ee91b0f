"""The product of two blocks, as all kernels take it."""

# The bodies of kernels are Triton's language, not Python, and Triton need not be installed.
# pyright: reportMissingParameterType=false, reportMissingImports=false
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """Return ``a b`` in fp32. PRECISION: what `rows.precision` says of a dtype."""
    if PRECISION == "wide":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision=PRECISION)
