"""What stands for a CUDA graph on a CPU: the operators of one run, run again on the tensors that they had then.

As in a graph, nothing that Python decides or computes happens again: only what was recorded, on the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tintc.ir.simulator.kernels import choice
from tintc.runtime.execution.fused import graphs


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.entries.append((func, args, kwargs or {}, result))
        return result


class TwinRecording:
    """A run as the list of its operators. replays: how often it was run again."""

    replays = 0

    def __init__(self, run: Callable[[], Any], device: torch.device, pool: Any):
        with _Tape() as tape:
            self.results = run()
        self._tape = tape.entries

    def replay(self) -> None:
        TwinRecording.replays += 1
        for func, args, kwargs, recorded in self._tape:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(recorded), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@contextmanager
def twins() -> Iterator[type[TwinRecording]]:
    """A block in which simulators on a CPU record, and run as if its numbers could not be looked at."""
    graphs.RECORDINGS["cpu"] = TwinRecording
    choice.READABLE.remove("cpu")
    TwinRecording.replays = 0
    try:
        yield TwinRecording
    finally:
        del graphs.RECORDINGS["cpu"]
        choice.READABLE.add("cpu")
