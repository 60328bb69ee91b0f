"""Our Triton kernels compile for the GPU they are written for, and fit it, as the interpreter cannot tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed (the extra cuda)")
SCRIPT = Path(__file__).parent / "compile_kernels.py"
SHARED = 227 << 10
"""Bytes of shared memory that a block of an H100 or H200 may have."""
SPILT = 256
"""Bytes that each thread may keep in memory for want of registers."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bfloat16", "float32", "float32 tf32"])
def test_kernels_fit_the_gpu(kind: str, tmp_path: Path) -> None:
    dtype, _, tf32 = kind.partition(" ")
    given = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), str(tmp_path), dtype, tf32]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    taken = json.loads(done.stdout.splitlines()[-1])
    assert len({one["kernel"] for one in taken}) == 6
    assert all(one["shared"] <= SHARED and one["stack"] <= SPILT for one in taken), taken
