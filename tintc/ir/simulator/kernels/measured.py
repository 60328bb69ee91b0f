"""What was measured of each kernel beside PyTorch's operators, and which of them it says should run.

``measured.json`` beside this file has the figures; `benchmarks/gpu.sh` writes it. It is empty until a GPU has been
measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_name("measured.json")
GAIN = 0.95
"""A kernel runs if it takes at most this part of the time of PyTorch's operators, in the geometric mean over sizes."""
APART = {"bfloat16": 3e-2, "float32": 5e-3}
"""How far a kernel's result may be from PyTorch's, of the largest number: rounding, and what differences make of it."""


class Case(NamedTuple):
    """One operation of one size: seconds by PyTorch's operators and by the kernel, and how far apart the results are,
    as a part of the largest number."""

    kernel: str
    dtype: str
    size: str
    torch: float
    other: float
    apart: float

    @property
    def ratio(self) -> float:
        return self.other / self.torch


class Verdict(NamedTuple):
    """Whether a kernel should run, and why."""

    runs: bool
    reason: str


def verdicts(machine: str, cases: Iterable[Case]) -> dict[tuple[str, str], Verdict]:
    """Return the verdict for each kernel and dtype that was measured."""
    by_kind: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        by_kind.setdefault((case.kernel, case.dtype), []).append(case)
    return {kind: _verdict(machine, same) for kind, same in by_kind.items()}


def _verdict(machine: str, cases: list[Case]) -> Verdict:
    wrong = [case for case in cases if not case.apart <= APART[case.dtype]]
    if wrong:
        worst = max(wrong, key=lambda case: case.apart)
        return Verdict(False, f"its result is {worst.apart:.1e} off at {worst.size}, on {machine}")
    ratios = [case.ratio for case in cases]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    sizes = ", ".join(f"{case.ratio:.2f} at {case.size}" for case in cases)
    return Verdict(mean <= GAIN, f"{mean:.2f} of the time of PyTorch's operators ({sizes}), on {machine}")


@cache
def measured() -> Mapping[tuple[str, str], Verdict]:
    """Return what the file says of kernels, by name and dtype."""
    held = json.loads(FILE.read_text(encoding="utf-8"))
    return verdicts(held["machine"], [Case(**case) for case in held["cases"]])


def as_text(machine: str, cases: Iterable[Case]) -> str:
    """Return the file's text."""
    lines = ",\n".join(json.dumps(case._asdict()) for case in cases)
    return f'{{"machine": {json.dumps(machine)}, "cases": [\n{lines}\n]}}\n'


def dtype_name(dtype: Any) -> str:
    """Return a dtype as the file calls it."""
    return str(dtype).removeprefix("torch.")
