"""Where and how long to measure, and where the figures go: one line of JSON each, written as soon as it is known."""

from __future__ import annotations

import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.models import Shape, make
from tintc.errors import InputError

FIGURES = "figures.jsonl"
PROGRAMS = "programs"
LONG = 8.0
"""Seconds after which a measurement is not repeated."""
WIDE, TINY_WIDE = 8192, 256
"""Width of the square product whose rate others are set against."""


@dataclass
class Setup:
    """out: folder of the figures; device: what is measured; tiny: sizes that only show that everything runs; seconds:
    after which no new measurement begins; failed: how many measurements have failed."""

    out: Path
    device: torch.device
    tiny: bool
    seconds: float
    started: float = field(default_factory=time.perf_counter)
    failed: int = 0

    @property
    def left(self) -> bool:
        """Whether there is time for another measurement."""
        return time.perf_counter() - self.started < self.seconds

    def make(self, name: str, dtype: torch.dtype) -> Shape:
        """Return the simulator of a shape, or the tiny one."""
        return make("tiny" if self.tiny else name, self.device, dtype, self.out / PROGRAMS)

    def note(self, part: str, **figures: Any) -> None:
        """Write a line of figures."""
        self.out.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"part": part, **figures})
        print(line, flush=True)
        with (self.out / FIGURES).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    @contextmanager
    def trying(self, part: str, **given: Any) -> Iterator[None]:
        """Yield in a block whose failure costs no other measurement: it is noted, and what follows goes on."""
        try:
            yield
        except (InputError, torch.OutOfMemoryError) as error:
            self.note(part, **given, refused=_first_line(error))
        except Exception as error:
            traceback.print_exc()
            self.failed += 1
            self.note(part, **given, failed=f"{type(error).__name__}: {_first_line(error)}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """Wait until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def median(self, run: Callable[[], Any], rounds: int = 5) -> float:
        """Return seconds of one run: the median of `rounds`, after one that is not counted; of fewer where they take
        long, or where time is up."""
        taken: list[float] = []
        for turn in range(rounds + 1):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            if turn:
                taken.append(time.perf_counter() - start)
            if taken and (sum(taken) > LONG or not self.left):
                break
        return statistics.median(taken)

    def peak(self, run: Callable[[], Any]) -> int | None:
        """Return the bytes that a run takes beyond what is there before it; None where they are not counted."""
        if self.device.type != "cuda":
            run()
            return None
        self.wait()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) - before

    def texts(self, batch: int, length: int, vocab: int) -> Tensor:
        """Return random token ids ``[batch, length]``."""
        return torch.randint(5, vocab, (batch, length), generator=torch.Generator().manual_seed(0)).to(self.device)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def product_rate(setup: Setup, dtype: torch.dtype) -> float:
    """Return the multiply-adds per second of a large square product, the ceiling for all others."""
    wide = TINY_WIDE if setup.tiny else WIDE
    a, b = (torch.randn(wide, wide, device=setup.device).to(dtype) for _ in range(2))
    return wide**3 / setup.median(lambda: a @ b)


def copy_rate(setup: Setup) -> float:
    """Return the bytes per second, read and written, of a large copy."""
    a = torch.empty((1 if setup.tiny else 1024) << 20, dtype=torch.uint8, device=setup.device)
    b = torch.empty_like(a)
    return 2 * a.numel() / setup.median(lambda: b.copy_(a))


def read_figures(folder: Path) -> list[dict[str, Any]]:
    """Return all lines of figures."""
    file = folder / FIGURES
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
